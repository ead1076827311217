"""Settings with a few allowed words."""

from collections.abc import Sequence
from difflib import get_close_matches


def one_of(setting: str, value: str, allowed: Sequence[str]) -> str:
    """Give the value back, or raise ValueError that names the setting and what is allowed."""
    if value in allowed:
        return value
    close = get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{setting} must be one of {', '.join(allowed)}, got {value!r}{hint}")
