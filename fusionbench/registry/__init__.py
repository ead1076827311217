"""Which methods, tasks and encoders exist, read from source without importing it."""
