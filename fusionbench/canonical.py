"""JSON with one spelling for each value, and hashes of it. Standard library only."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that show an edit; a diverged run's NaN is allowed here."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_object(text: str) -> dict[str, Any]:
    """The object in the text; ValueError if it is truncated or holds anything else."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"truncated or not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values
