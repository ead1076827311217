"""Frozen vision encoders behind one contract, and their cached hidden states."""
