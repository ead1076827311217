"""Minimum detectable effects, now and with more seeds or tasks."""
