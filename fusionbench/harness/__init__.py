"""Training and scoring of one cell, or of many seeds in one pass."""
