"""What a fusion costs over the bare encoder: parameters, operations, time, memory.

`records` (standard library only) is what a profile leaves behind and what a report reads; the
other modules measure and need torch.
"""
