"""The command line. Exit codes: 0 success, 1 a cell or check failed, 2 user error, 130 Ctrl-C.

Standard output and error show any text in the terminal's letters, without control codes:
messages quote names, settings and errors of plug-ins and data. An escape sequence in them would
reach the terminal, and a letter that its encoding lacks would end the program.
"""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from fusionbench.api.errors import UserError
from fusionbench.cli import (
    ablate,
    again,
    doctor,
    extend,
    fetch,
    folder,
    listing,
    models,
    profile,
    reports,
    run,
)
from fusionbench.cli.app import app
from fusionbench.records.text import encodable, visible


class VisibleStream:
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
    # None for a stream that was closed before the start.
    open_ones = (stream or Path(os.devnull).open("w", encoding="utf-8") for stream in before)
    sys.stdout, sys.stderr = (cast(TextIO, VisibleStream(stream)) for stream in open_ones)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


COMMANDS = (
    run,
    folder,
    reports,
    folder,
    models,
    models,
    models,
    again,
    again,
    again,
    ablate,
    profile,
    profile,
    listing,
    extend,
    fetch,
    fetch,
    extend,
    doctor,
)
"""In the order of `--help`; a module registers its commands when it is imported."""


def main() -> None:
    """Entry point of the installed script and of `python -m fusionbench`."""
    # OpenBLAS threads wait by spinning: where workers occupy the cores, a product of 1 ms takes
    # 100 ms. NumPy reads the variable once, at import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with shown_streams():
        try:
            app()
        except UserError as error:
            sys.stderr.write(f"error: {error.message}\n")
            if error.hint:
                sys.stderr.write(f"hint: {error.hint}\n")
            sys.exit(2)
        except Exception:
            # Its text may hold what a terminal must not act on; the interpreter would print it raw.
            sys.stderr.write(traceback.format_exc())
            sys.exit(1)
