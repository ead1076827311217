"""Training, scoring and cost of a method: one cell, or many seeds in one pass."""
