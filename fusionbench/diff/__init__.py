"""Why two folders of results differ: what was asked, what ran, where, and the scores."""
