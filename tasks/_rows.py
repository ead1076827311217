"""One row of a benchmark's table, whatever it was read from, with errors that name its place."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionbench.api import Picture, UserError
from fusionbench.api.benchmarks import Encoded

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHORT = "\nAnswer the question using a single word or phrase."
"""Suffix of LLaVA-1.5's prompts for open questions (Liu et al., CVPR 2024, Table 7)."""
LETTER = "\nAnswer with the option's letter from the given choices directly."
"""Its suffix for questions with options."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Values by column; `where` is the file and line (or row) that errors name."""

    values: Mapping[str, Any]
    where: str
    stored: Callable[[str, int], Encoded] | None = None
    """Reads the image at a position of a column again; without it rows hold their images."""

    def text(self, column: str) -> str:
        """A required text. Raises UserError for a column that is missing or empty."""
        if column not in self.values:
            raise UserError(
                f"{self.where}: no column {column!r}", f"it has: {', '.join(self.values)}"
            )
        if not (found := self.maybe(column)):
            raise UserError(f"{self.where}: {column} is empty", "each row needs one")
        return found

    def maybe(self, column: str) -> str:
        """A text, empty where the column or its value is missing (`nan` of pandas included)."""
        value = self.values.get(column)
        if value is None or value != value or isinstance(value, str) and value == "nan":
            return ""
        return str(value)

    def texts(self, column: str) -> list[str]:
        """A list of texts, also as JSON or Python text; one text alone is a list of one."""
        value = self.values[column] if column in self.values else self.text(column)
        found = literal(value) if isinstance(value, str) and value.startswith("[") else value
        if found is None:
            raise UserError(f"{self.where}: {column} is cut off or no list", f"got {value!r:.80}")
        return [str(one) for one in found] if isinstance(found, list | tuple) else [str(found)]

    def integer(self, column: str) -> int:
        """A required integer. Raises UserError for other values."""
        text = self.text(column)
        try:
            return int(text)
        except ValueError as error:
            raise UserError(f"{self.where}: {column} must be an integer, got {text!r}") from error

    def options(self) -> tuple[str, ...]:
        """Texts of the columns A, B, ... Raises UserError for a gap between them."""
        found = [self.maybe(letter) for letter in LETTERS]
        while found and not found[-1]:
            found.pop()
        if "" in found:
            raise UserError(
                f"{self.where}: option {LETTERS[found.index('')]} is empty, a later one is not"
            )
        return tuple(found)

    def one_of(self, column: str, allowed: Sequence[str]) -> str:
        """A text that must be one of `allowed`. Raises UserError."""
        found = self.text(column)
        if found not in allowed:
            raise UserError(
                f"{self.where}: {column} {found!r} is outside the options",
                f"allowed: {', '.join(allowed)}",
            )
        return found

    def letter(self, column: str, options: Sequence[str]) -> int:
        """Index of the option that a letter names. Raises UserError outside the options."""
        return LETTERS.index(self.one_of(column, LETTERS[: len(options)]))

    def pictures(self, column: str = "image") -> tuple[Picture, ...]:
        """The images of a column, none where it is empty. Raises UserError for other values."""
        value = self.values.get(column)
        many = value if isinstance(value, list | tuple) else [value]
        return tuple(self._picture(column, k, one) for k, one in enumerate(many) if one is not None)

    def _picture(self, column: str, position: int, value: Any) -> Picture:
        if isinstance(value, Picture):
            return value
        content: Any = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            key = digest(content)
        elif hasattr(content, "tobytes"):
            key = digest(repr(content.size).encode() + content.tobytes())
        else:
            raise UserError(f"{self.where}: {column} holds no image", f"got {value!r:.80}")
        if self.stored is not None:
            content = self.stored(column, position)
        return Picture(name=f"{self.where}, {column}", content=content, key=key)


def literal(text: str) -> Any:
    """Value of JSON or of a Python literal; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return None


def digest(content: bytes) -> str:
    """Key of an image: 16 digits of the SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def image_file(root: Path, name: str, where: str) -> Picture:
    """An image below `root`. Raises UserError if the file is not there."""
    if not (root / name).is_file():
        raise UserError(f"{where}: there is no image {root / name}", "restore the file")
    return Picture(name=name, content=root / name, key=name)


def group(pictures: Sequence[Picture], name: str) -> str:
    """Group of a question: its images, or the question itself where it has none."""
    return "+".join(picture.key for picture in pictures) or name


def lettered(options: Sequence[str], form: str = "{}. {}") -> str:
    """The options, a line each, as `A. text`."""
    return "\n".join(form.format(*pair) for pair in zip(LETTERS, options, strict=False))


class Once:
    """Refuses an id that was seen before, with both places."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: dict[str, str] = {}

    def __call__(self, name: str, where: str) -> str:
        """Return `name`. Raises UserError for the second of two."""
        if name in self._seen:
            raise UserError(
                f"{where}: {self._what} {name} twice, first in {self._seen[name]}",
                "ids must be unique",
            )
        self._seen[name] = where.rpartition(", ")[2]
        return name


def numbered(values: Sequence[Any], where: str) -> Iterator[Row]:
    """Rows of a list of objects. Raises UserError for another entry."""
    for index, value in enumerate(values):
        place = f"{where}, entry {index + 1}"
        if not isinstance(value, dict):
            raise UserError(f"{place}: must be an object, got {value!r:.80}")
        yield Row(values=value, where=place)
