"""Sentences of papers as data, and what a folder of results answers to each of them."""
