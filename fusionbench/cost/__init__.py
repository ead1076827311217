"""Cost of a fusion over the bare encoder: parameters, operations, latency, memory."""
