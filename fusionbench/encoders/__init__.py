"""Frozen vision encoders behind one contract."""
