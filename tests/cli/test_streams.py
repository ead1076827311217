"""Output never ends a command and never acts on the terminal."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from fusionbench.cli.main import VisibleStream
from fusionbench.launchers.progress import make_progress

SLY = "\x1b]0;owned\x07\x1b[2J"


def terminal(encoding):
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding=encoding, write_through=True)


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


def test_a_folder_of_our_name_in_the_working_folder_hides_nothing(tmp_path):
    import fusionbench

    (tmp_path / "fusionbench" / "cells").mkdir(parents=True)
    root = Path(fusionbench.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", _EDITABLE, str(root), "list", "encoders"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr
