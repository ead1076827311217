"""Two methods, seed by seed and example by example: from a folder's records to one estimate."""
