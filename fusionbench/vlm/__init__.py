"""The multimodal track: fusion methods trained and scored inside a vision-language model."""
