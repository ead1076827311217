"""The items of a JSON list or of JSON lines, read one by one, with their places in the file.

A file of a gigabyte needs the memory of its largest item.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fusionbench.api.errors import UserError

_BLOCK = 1 << 20
_LONGEST = 1 << 26
"""Characters of an item; what is longer is a broken file."""
_MARK = b"\xef\xbb\xbf"
_SPACES = re.compile(r"[ \t\r\n]*")
_ALLOWED = "allowed: a JSON list of objects, or one object a line (JSON lines)"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One item of a file."""

    value: Any
    start: int
    """Its first byte."""
    stop: int
    """The byte behind its last."""
    line: int
    """Where it starts, from 1."""


def items(path: Path) -> Iterator[Found]:
    """The items in order. Raises UserError for a file that cannot be read or holds no list.

    The first character of the file decides between a list and JSON lines.
    """
    try:
        with path.open("rb") as file:
            start = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
            file.seek(start)
            first = _first(file)
            file.seek(start)
            if first == b"[":
                yield from _of_list(_Text(file, path, start))
            elif first == b"{":
                yield from _of_lines(file, path, start)
            else:
                raise UserError(f"{path} is not a list: {_shown(first)}", _ALLOWED)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", _ALLOWED) from error


def read_item(path: Path, start: int, stop: int) -> Any:
    """The item between two bytes of a file. Raises UserError if the file has changed."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(stop - start))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has changed since it was read: {error}", "start again") from error


def _first(file: BinaryIO) -> bytes:
    """The first byte that is no space; empty at the end of the file."""
    while (byte := file.read(1)) and byte.isspace():
        pass
    return byte


def _shown(first: bytes) -> str:
    return f"it starts with {first.decode('latin-1')!r}" if first else "it is empty"


def _of_lines(file: BinaryIO, path: Path, start: int) -> Iterator[Found]:
    for number, content in enumerate(file, start=1):
        stop = start + len(content)
        if content.strip():
            yield Found(value=_line(content, path, number), start=start, stop=stop, line=number)
        start = stop


def _line(content: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise UserError(f"{path}, line {number} is nested too deep", _ALLOWED) from error
    except ValueError as error:
        # An object over several lines is one JSON object and not a list.
        what = "is not a list" if number == 1 else "is truncated or not JSON"
        raise UserError(f"{path}, line {number} {what}: {error}", _ALLOWED) from error


class _Text:
    """A position in a text that is read in blocks."""

    def __init__(self, file: BinaryIO, path: Path, start: int) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self.path = path
        self.text = ""
        self.at = 0
        self.byte = start
        self.line = 1

    def grow(self) -> bool:
        """Read on; False at the end of the file."""
        block = self._file.read(_BLOCK)
        try:
            more = self._decode.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self.error(f"no UTF-8: {error.reason}") from error
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(block)

    def move(self, count: int) -> None:
        """Go on by some characters."""
        passed = self.text[self.at : self.at + count]
        self.at += count
        self.byte += len(passed.encode())
        self.line += passed.count("\n")

    def _spaces(self) -> int:
        """Number of spaces at the position."""
        found = _SPACES.match(self.text, self.at)
        return found.end() - self.at if found else 0

    def peek(self) -> str:
        """The next character that is no space, which becomes the position; empty at the end."""
        while True:
            self.move(self._spaces())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def error(self, what: str) -> UserError:
        """An error at this position."""
        return UserError(f"{self.path}, line {self.line}: {what}", _ALLOWED)


def _of_list(text: _Text) -> Iterator[Found]:
    """The items of the one list of a file. Raises UserError for anything behind it."""
    text.peek()
    text.move(1)
    if closed := text.peek() == "]":
        text.move(1)
    while not closed:
        start, line = text.byte, text.line
        value, length = _value(text)
        text.move(length)
        yield Found(value=value, start=start, stop=text.byte, line=line)
        mark = text.peek()
        if mark not in (",", "]"):
            raise text.error(f"expected a comma or the end of the list, got {mark!r}")
        text.move(1)
        closed = mark == "]"
        text.peek()
    if more := text.peek():
        raise text.error(f"expected the end of the file behind the list, got {more!r}")


def _value(text: _Text) -> tuple[Any, int]:
    """The value at the position and its number of characters."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, stop = decoder.raw_decode(text.text, text.at)
            return value, stop - text.at
        except json.JSONDecodeError as error:
            too_long = len(text.text) - text.at > _LONGEST
            if too_long or not text.grow():
                raise text.error(f"truncated or not JSON: {error.msg}") from error
        except ValueError as error:
            # A number of thousands of digits.
            raise text.error(str(error)) from error
        except RecursionError as error:
            raise text.error("nested too deep") from error
