"""How small a difference a study can find, and what more seeds would buy."""
