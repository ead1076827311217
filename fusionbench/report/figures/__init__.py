"""Figures of a report: each a function from `Material` to a `Drawing`, or to None."""
