"""Records on disk and how they are read: cells, stores, scores, pairs, costs. No torch."""
