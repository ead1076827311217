"""Why two folders of results differ."""
