"""A paper's tables in their shape, filled from our records, with its own numbers beside them."""
