"""What a fusion costs over the bare encoder: parameters, operations, time, memory."""
