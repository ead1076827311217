"""Estimates, intervals, tests and verdicts: arrays in, numbers out."""
