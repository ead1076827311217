"""What a run says while it works: plain lines in a log, a live line on a terminal."""

import io

import pytest

from fusionbench.launchers import progress
from fusionbench.launchers.progress import Lines, Live, Silent, make_progress, remaining


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_stream_decides_what_progress_looks_like():
    assert isinstance(make_progress(quiet=False, stream=Terminal()), Live)
    assert isinstance(make_progress(quiet=False, stream=io.StringIO()), Lines)
    assert isinstance(make_progress(quiet=True, stream=Terminal()), Silent)


def test_plain_lines_come_at_most_every_five_seconds_and_tell_the_time_left(clock):
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(total=110, done=10)
    for _ in range(100):
        lines.cell("mema", "digits", 1)
        clock.now += 1
        lines.finished()
    printed = stream.getvalue().splitlines()
    assert printed[0] == "100 of 110 cells to run"
    assert printed[1] == "15/110 cells, mema on digits, seed 1, 2 min left"
    assert printed[-1] == "110/110 cells, mema on digits, seed 1, 0 s left"
    assert len(printed) <= 2 + 100 / 5


@pytest.mark.parametrize("kind", [Lines, Live])
def test_encoding_is_no_part_of_the_pace_and_long_cells_count_more(clock, kind):
    stream = Terminal()
    shown = kind(stream)
    shown.start(total=1000, done=0)
    clock.now += 3600
    shown.cell("mema", "digits", 0)
    clock.now += 10
    shown.finished(share=0.1)
    if kind is Live:
        shown.bar.refresh()
    shown.close()
    # Ten seconds for a tenth of the work, though for a thousandth of the cells.
    assert "1/1000" in stream.getvalue() and "2 min left" in stream.getvalue()


def test_time_left_is_what_the_rest_takes_at_the_pace_so_far():
    assert remaining(0, 10, 5.0) == "?"
    assert remaining(5, 10, 50.0) == "50 s"
    assert remaining(1, 11, 60.0) == "10 min"
    assert remaining(1, 81, 60.0) == "1 h 20 min"


def test_a_terminal_shows_cells_done_the_current_cell_and_the_time_left(clock):
    stream = Terminal()
    live = Live(stream)
    live.start(total=10, done=2)
    live.cell("mema[reduction=2]", "digits", 1)
    clock.now += 3
    live.finished()
    live.note("last on digits failed: [boom]")
    assert live.bar is not None
    live.bar.refresh()
    live.close()
    shown = stream.getvalue()
    assert "3/10" in shown and "mema[reduction=2] on digits, seed 1" in shown
    assert "21 s left" in shown and "last on digits failed: [boom]" in shown


def test_quiet_still_says_what_went_wrong():
    stream = io.StringIO()
    silent = Silent(stream)
    silent.start(10, 0)
    silent.cell("mema", "digits", 0)
    silent.finished()
    silent.note("a worker ended")
    silent.close()
    assert stream.getvalue() == "a worker ended\n"
