"""LLaVA checkpoints of transformers, taken apart into tower, projector and language model."""
