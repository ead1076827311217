"""Equal parts of many records, kept once: they say the same of tasks, taps, machine and code."""

import marshal
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


class Shared:
    """Values of JSON and tuples of them, one object for each; nobody may change them."""

    def __init__(self) -> None:
        self._known: dict[bytes, object] = {}

    def __call__(self, value: Value) -> Value:
        """The first value that was equal to this one, in all of its types: 1 is not 1.0."""
        # Without references, which later versions write: they depend on more than the value.
        found: Any = self._known.setdefault(marshal.dumps(cast(Any, value), 2), value)
        return cast(Value, found)
