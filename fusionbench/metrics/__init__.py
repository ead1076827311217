"""Metrics of the benchmarks: pure functions of the text of an answer, one file a benchmark."""
