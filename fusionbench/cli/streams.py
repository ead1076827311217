"""Standard output and error that show any text: in the terminal's letters, without control codes.

Messages quote names, settings and errors of plug-ins and data. An escape sequence in them would
reach the terminal, and a letter that its encoding lacks would end the program.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from fusionbench.records.text import encodable, visible


class Shown:
    """A text stream in front of another, which has all other attributes."""

    def __init__(self, stream: TextIO) -> None:
        self.unfiltered = stream
        """For a program's own control codes: a live progress bar."""

    def write(self, text: str) -> int:
        """Write the text as far as the stream can show it."""
        shown = visible(text)
        try:
            encoding = str(getattr(self.unfiltered, "encoding", None) or "utf-8")
            self.unfiltered.write(encodable(shown, encoding))
        except UnicodeEncodeError:
            self.unfiltered.write(encodable(shown, "ascii"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self.unfiltered, name)


@contextmanager
def shown_streams() -> Iterator[None]:
    """Standard output and error of this process as `Shown` streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Shown(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
