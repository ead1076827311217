"""Claims of papers, answered from records."""
