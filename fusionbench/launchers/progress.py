"""Progress of a run: a live bar on a terminal, a line now and then anywhere else."""

import sys
import time
from typing import TYPE_CHECKING, TextIO

from fusionbench.records.text import encodable, visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY = 5.0
"""Seconds between plain lines."""


def make_progress(*, quiet: bool, stream: TextIO | None = None) -> "Lines | Live | Silent":
    """The progress that fits the stream (standard error unless given)."""
    stream = stream or sys.stderr
    if quiet:
        return Silent(stream)
    return Live(stream) if stream.isatty() else Lines(stream)


def remaining(done: float, total: float, seconds: float) -> str:
    """Time left at the pace so far: `4 min`, `1 h 20 min`, `?` before anything is done."""
    if done <= 0:
        return "?"
    left = max(seconds / done * (total - done), 0.0)
    if left < 90:
        return f"{left:.0f} s"
    minutes = round(left / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Silent:
    """Prints notes only: errors are always shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def start(self, total: int, done: int) -> None:
        """`done` of `total` cells have a record already."""

    def cell(self, label: str, task: str, seed: int) -> None:
        """A cell begins."""

    def finished(self, n: int = 1, *, share: float | None = None) -> None:
        """`n` cells have ended, well or badly; `share`: of the expected work, done by now."""

    def stage(self, text: str) -> None:
        """How far the work before the first cell is."""

    def note(self, text: str) -> None:
        """Print one line."""
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """The run is over."""


class Lines:
    """Plain lines for logs: `120/900 cells, mema on digits seed 1, 4 min left`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.total = self.before = self.ended = 0
        self.current, self.share = "", 0.0
        self.began = self.printed = 0.0

    def start(self, total: int, done: int) -> None:
        """`done` of `total` cells have a record already."""
        self.total, self.before, self.ended = total, done, 0
        self.began = self.printed = time.monotonic()
        self.note(f"{total - done} of {total} cells to run")

    def cell(self, label: str, task: str, seed: int) -> None:
        """A cell begins."""
        if not self.current:
            # What was encoded before says nothing of the pace.
            self.began = time.monotonic()
        self.current = f"{label} on {task}, seed {seed}"
        if time.monotonic() - self.printed >= _LINE_EVERY:
            self._print()

    def finished(self, n: int = 1, *, share: float | None = None) -> None:
        """`n` cells have ended, well or badly; `share`: of the expected work, done by now."""
        self.ended += n
        self.share = self.ended / (self.total - self.before) if share is None else share
        late = time.monotonic() - self.printed >= _LINE_EVERY
        if late or self.before + self.ended >= self.total:
            self._print()

    def stage(self, text: str) -> None:
        """How far the work before the first cell is; a line now and then."""
        if time.monotonic() - self.printed >= _LINE_EVERY:
            self.printed = time.monotonic()
            self.note(text)

    def note(self, text: str) -> None:
        """Print one line."""
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """The run is over."""

    def _print(self) -> None:
        self.printed = time.monotonic()
        left = remaining(self.share, 1.0, self.printed - self.began)
        now = f"{self.current}, " if self.current else ""
        self.note(f"{self.before + self.ended}/{self.total} cells, {now}{left} left")


class Live:
    """A live line: a bar, cells done and total, the current cell, the time left."""

    def __init__(self, stream: TextIO) -> None:
        # The command line hides control codes; a bar is made of them.
        self.stream: TextIO = getattr(stream, "unfiltered", stream)
        self.bar: Bar | None = None
        self.row: TaskID | None = None
        self.total = self.before = self.ended = 0
        self.began: float | None = None

    def start(self, total: int, done: int) -> None:
        """`done` of `total` cells have a record already."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("cells"))
        text = TextColumn("{task.fields[left]}  {task.description}")
        self.bar = Progress(*columns, text, console=Console(file=self.stream), transient=True)
        self.bar.start()
        self.row = self.bar.add_task("", total=total, completed=done, left="")
        self.total, self.before = total, done

    def cell(self, label: str, task: str, seed: int) -> None:
        """A cell begins."""
        if self.began is None:
            self.began = time.monotonic()
        self.stage(f"{label} on {task}, seed {seed}")

    def stage(self, text: str) -> None:
        """What is at work now, beside the bar."""
        if self.bar is not None and self.row is not None:
            from rich.markup import escape

            self.bar.update(self.row, description=escape(visible(text)))

    def finished(self, n: int = 1, *, share: float | None = None) -> None:
        """`n` cells have ended, well or badly; `share`: of the expected work, done by now."""
        self.ended += n
        if self.bar is not None and self.row is not None:
            share = self.ended / (self.total - self.before) if share is None else share
            now = time.monotonic()
            left = remaining(share, 1.0, now - (now if self.began is None else self.began))
            self.bar.update(self.row, advance=n, left=f"{left} left")

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        text = encodable(visible(text), self.stream.encoding or "utf-8")
        if self.bar is None:
            self.stream.write(f"{text}\n")
            return
        self.bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """The run is over."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
