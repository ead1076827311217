"""JSON and JSON lines of official files, with the line of whatever is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionbench.api import UserError
from fusionbench.tasks._rows import Row, numbered


def read_json(file: Path) -> Any:
    """The value of a JSON file. Raises UserError with the line, and for a key that occurs twice."""
    try:
        return json.loads(_text(file), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})",
            "the file may be cut off: download it again",
        ) from error
    except _TwiceError as error:
        raise UserError(f"{file}: id {error} twice", "ids must be unique") from error


def json_rows(file: Path, column: str = "") -> Iterator[Row]:
    """Rows of a JSON list, or of the list at `column` of an object."""
    value = read_json(file)
    if column:
        value = value.get(column) if isinstance(value, dict) else None
    if not isinstance(value, list):
        what = f"no list {column!r}" if column else "not a list"
        raise UserError(f"{file}: {what}", "is it the right file?")
    return numbered(value, f"{file}{f', {column}' if column else ''}")


def keyed_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """(id, row) of a JSON object of objects."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: not an object of id -> question", "is it the right file?")
    for key, value in values.items():
        if not isinstance(value, dict):
            raise UserError(f"{file}, id {key}: must be an object, got {value!r:.80}")
        yield key, Row(values=value, where=f"{file}, id {key}")


def line_rows(file: Path) -> Iterator[Row]:
    """Rows of JSON lines. Raises UserError with the line, and for a key that occurs twice."""
    for line, where in text_lines(file):
        try:
            value = json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not JSON ({error.msg}, column {error.colno})",
                "the file may be cut off, or not JSON lines: download it again",
            ) from error
        except _TwiceError as error:
            raise UserError(f"{where}: key {error} twice", "keys must be unique") from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: must be an object, got {value!r:.80}")
        yield Row(values=value, where=where)


def text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and file and line for errors. Raises UserError."""
    # Not `splitlines`: a question may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            yield line, f"{file}, line {number}"


class _TwiceError(ValueError):
    """A key that occurs twice in an object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 text at byte {error.start}", "is it complete?"
        ) from error
