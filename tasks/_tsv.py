"""VLMEvalKit's TSV of a benchmark, read a row at a time; images are read again when opened.

Columns: `index`, `image` (base64, a list of them, or the index of the row that has the image) or
`image_path`, and the benchmark's own.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fusionbench.api import Picture, UserError
from fusionbench.tasks._rows import Once, Row, digest, image_file, literal

REFERENCE = 64
"""VLMEvalKit's rule: an `image` of at most so many characters is the index of another row."""
_EMPTY = ("", "nan")


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row with the byte where it starts and its last line."""

    cells: list[str]
    start: int
    number: int


@dataclass(frozen=True, kw_only=True)
class TsvImage:
    """An image inside a TSV, read when it is opened."""

    file: Path
    start: int
    column: int
    position: int
    where: str

    def read(self) -> bytes:
        """The decoded bytes. Raises UserError for broken base64."""
        line = next(_lines(self.file, self.start))
        return decoded(encoded_images(line.cells[self.column])[self.position], self.where)


def tsv_rows(file: Path) -> Iterator[Row]:
    """The rows of a TSV. Raises UserError with the line for what is cut off, or an index twice."""
    lines = _lines(file, 0)
    first = next(lines, None)
    if first is None or "index" not in first.cells:
        has = ", ".join(first.cells[:20]) if first else "nothing"
        raise UserError(f"{file}, line 1: no column 'index'", f"it has: {has:.200}")
    header = first.cells
    images, once = _Images(file, header), Once("index")
    for line in _complete(lines, header, file):
        where = f"{file}, line {line.number}"
        values: dict[str, object] = dict(zip(header, line.cells, strict=True))
        once(str(values["index"]), where)
        values["image"] = images.of(line, where)
        yield Row(values=values, where=where)


def _complete(lines: Iterator[_Line], header: list[str], file: Path) -> Iterator[_Line]:
    """The rows. Raises UserError with the line for another number of cells than the header has."""
    for line in lines:
        if len(line.cells) != len(header):
            raise UserError(
                f"{file}, line {line.number}: {len(line.cells)} fields, the header has "
                f"{len(header)}",
                "the file may be cut off: download it again",
            )
        yield line


def _lines(file: Path, start: int) -> Iterator[_Line]:
    """Rows of a TSV from a byte on, with the quoting of pandas."""
    # The limit is one of the csv module; an image has megabytes.
    csv.field_size_limit(sys.maxsize)
    with file.open("rb") as opened:
        opened.seek(start)
        source = _Counted(opened, file, start)
        reader = csv.reader(source, delimiter="\t")
        while True:
            begin = source.position
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{file}, line {reader.line_num}: {error}") from error
            if cells is None:
                return
            if source.ended:
                # The reader asked for a further line of this row.
                raise UserError(
                    f"{file}, line {reader.line_num}: the file ends inside quotes",
                    "it may be cut off: download it again",
                )
            if cells:
                yield _Line(cells=cells, start=begin, number=reader.line_num)


class _Counted:
    """Lines of a binary file as text, with the position after the last one."""

    def __init__(self, opened: BinaryIO, file: Path, start: int) -> None:
        self._opened, self._file = opened, file
        self.position = start
        self.ended = False

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        line = self._opened.readline()
        if not line:
            self.ended = True
            raise StopIteration
        self.position += len(line)
        try:
            return line.decode("utf-8-sig" if self.position == len(line) else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self._file}: not UTF-8 text near byte {self.position}") from error


def encoded_images(text: str) -> list[str]:
    """The base64 texts of a cell: one, or a list in Python's notation."""
    if text.startswith("[") and text.endswith("]"):
        found = literal(text)
        return [str(one) for one in found] if isinstance(found, list) else [text]
    return [text]


def decoded(text: str, where: str) -> bytes:
    """The bytes of base64 text. Raises UserError with the place."""
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            f"{where}: the image is not base64 ({error})",
            "the file may be damaged: download it again",
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Owner:
    """The row that holds an image."""

    start: int
    keys: tuple[str, ...]


class _Images:
    """The images of the rows of one file."""

    def __init__(self, file: Path, header: list[str]) -> None:
        self._file, self._header = file, header
        self._index = header.index("index")
        self._column = header.index("image") if "image" in header else -1
        self._path = header.index("image_path") if "image_path" in header else -1
        self._owners: dict[str, _Owner] = {}

    def of(self, line: _Line, where: str) -> tuple[Picture, ...]:
        """The images of a row; none for an empty cell. Raises UserError for broken base64."""
        text = line.cells[self._column] if self._column >= 0 else ""
        if text in _EMPTY:
            return self._files(line, where)
        owner = self._own(line, where) if len(text) > REFERENCE else self._other(text, where)
        return tuple(self._picture(owner, position, where) for position in range(len(owner.keys)))

    def _picture(self, owner: _Owner, position: int, where: str) -> Picture:
        cell = TsvImage(
            file=self._file, start=owner.start, column=self._column, position=position, where=where
        )
        return Picture(name=f"{where}, image", content=cell, key=owner.keys[position])

    def _own(self, line: _Line, where: str) -> _Owner:
        parts = encoded_images(line.cells[self._column])
        keys = tuple(digest(decoded(part, where)) for part in parts)
        found = self._owners[line.cells[self._index]] = _Owner(start=line.start, keys=keys)
        return found

    def _other(self, index: str, where: str) -> _Owner:
        """The row that another one names, which may come later in the file."""
        if index in self._owners:
            return self._owners[index]
        for line in _complete(_lines(self._file, 0), self._header, self._file):
            if line.cells[self._index] == index and len(line.cells[self._column]) > REFERENCE:
                return self._own(line, where)
        raise UserError(
            f"{where}: image names row {index!r}, which has no image",
            "the image column holds base64 text or the index of a row with an image",
        )

    def _files(self, line: _Line, where: str) -> tuple[Picture, ...]:
        text = line.cells[self._path] if self._path >= 0 else ""
        names = [] if text in _EMPTY else encoded_images(text)
        return tuple(image_file(self._file.parent, name, where) for name in names)
