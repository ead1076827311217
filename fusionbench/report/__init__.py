"""Records to tables, plots and pages; no torch."""
