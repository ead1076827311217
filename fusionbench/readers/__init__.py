"""What turns fused tokens and a question into an answer."""
