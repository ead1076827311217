"""Extension of griffe: aligned columns in a docstring are shown as they are written."""

import re
from itertools import groupby
from typing import Any

from griffe import Extension, Object

# "name   meaning", or the continuation of a meaning.
_COLUMNS = re.compile(r"^\S[^.]*? {2,}\S|^ {8,}\S")


class Columns(Extension):
    """Puts such lines between fences, so that Markdown does not join them."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of every object that is loaded."""
        if obj.docstring and any(map(_COLUMNS.match, obj.docstring.value.splitlines())):
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with its aligned lines as code."""
    parts = []
    for is_column, lines in groupby(text.splitlines(), key=lambda x: bool(_COLUMNS.match(x))):
        block = "\n".join(lines)
        parts.append(f"\n```text\n{block}\n```\n" if is_column else block)
    return "\n".join(parts)
