"""Output never ends a command and never acts on the terminal."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from fusionbench.cli.main import VisibleStream
from fusionbench.launchers import progress
from fusionbench.launchers.progress import Lines, Live, Silent, make_progress, remaining

SLY = "\x1b]0;owned\x07\x1b[2J"


def terminal(encoding):
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding=encoding, write_through=True)


@pytest.mark.fault(
    "real files and terminals", "ASCII, latin-1, cp437 and cp932 terminals", "other letters"
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp932"])
@pytest.mark.parametrize("command", [("list", "methods", "--long"), ("list", "tasks"), ("--help",)])
def test_every_terminal_shows_every_list(command, encoding, monkeypatch, call):
    from fusionbench.cli import main as cli

    raw, stream = terminal(encoding)
    monkeypatch.setattr(sys, "argv", ["fusionbench", *command])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and sys.stdout is stream
    stream.flush()
    assert len(raw.getvalue().decode(encoding)) > 100


def test_a_report_table_has_twins_in_ascii():
    raw, stream = terminal("ascii")
    assert VisibleStream(stream).write("Mean ± half — †\n") == 16
    assert raw.getvalue() == b"Mean +/- half - +\n"


@pytest.mark.fault("real files and terminals", "escape sequences in names", "shown, not obeyed")
@pytest.mark.parametrize(
    "arguments",
    [("run", "--encoder", f"x{SLY}", "--tasks", "digits"), ("run", "--tasks", f"x{SLY}"),
     ("run", f"/nowhere{SLY}.yaml"), ("report", f"/nowhere{SLY}")],
)  # fmt: skip
def test_no_message_reaches_the_terminal_as_a_control_sequence(arguments, call):
    code, out, said = call(*arguments)
    assert code == 2 and "\\x1b" in said
    assert not set(out + said) & {"\x1b", "\x07"}


def test_an_unforeseen_error_is_shown_too(call, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError(f"plug-in says {SLY}")

    monkeypatch.setattr("fusionbench.cli.listing.methods_text", broken)
    code, _, said = call("list", "methods")
    assert code == 1 and "RuntimeError: plug-in says \\x1b]0;owned" in said and "\x1b" not in said


def test_a_live_bar_keeps_its_own_codes_and_shows_those_of_others():
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    screen = Terminal()
    progress = make_progress(quiet=False, stream=VisibleStream(screen))
    progress.start(2, 0)
    progress.cell(f"mema{SLY}", "digits", 0)
    progress.note(f"failed: {SLY}")
    progress.close()
    assert "\\x1b]0;owned" in screen.getvalue() and "\x1b]0;" not in screen.getvalue()
    assert "\x1b[2K" in screen.getvalue()


_EDITABLE = """
import importlib.util as util, runpy, sys
from pathlib import Path
root = Path(sys.argv.pop(1))

class Finder:
    # As setuptools finds an editable install: behind the path, submodules by their own names.
    def find_spec(name, path=None, target=None):
        parts = name.split(".")
        place = root.joinpath(*parts)
        if parts[0] != "fusionbench":
            return None
        if place.is_dir():
            return util.spec_from_file_location(name, place / "__init__.py",
                                                submodule_search_locations=[str(place)])
        file = place.with_suffix(".py")
        return util.spec_from_file_location(name, file) if file.is_file() else None

sys.path = [str(Path.cwd()), *(p for p in sys.path if p and Path(p).resolve() != root)]
sys.meta_path.append(Finder)
runpy.run_module("fusionbench", run_name="__main__", alter_sys=True)
"""


@pytest.mark.thorough
@pytest.mark.fault(
    "real files and terminals", "a folder `fusionbench` in the working folder", "hides nothing"
)
def test_a_folder_of_our_name_in_the_working_folder_hides_nothing(tmp_path):
    import fusionbench

    (tmp_path / "fusionbench" / "cells").mkdir(parents=True)
    root = Path(fusionbench.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", _EDITABLE, str(root), "list", "encoders"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr


# What a run says while it works: plain lines in a log, a live line on a terminal.


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
