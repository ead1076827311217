"""Frozen encoders and the readers of fused tokens: the models on both sides of a fusion."""
