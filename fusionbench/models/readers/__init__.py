"""Readers: from fused tokens and a question to the logits of its answers."""
