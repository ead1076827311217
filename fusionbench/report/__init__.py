"""Tables, figures and pages from records. No torch."""
