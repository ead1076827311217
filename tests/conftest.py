"""One thread, and one cache folder for the whole test run: never the user's."""

import os
import sys
import tempfile
from pathlib import Path

import fault_lines
import pytest

# Before anything of ours is imported. Workers of pytest-xdist share the folder: files in it are
# written whole, so what one of them has rendered or encoded serves all.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
_CACHE = Path(tempfile.gettempdir()) / f"fusionbench-test-cache-{_RUN}"
os.environ["FUSIONBENCH_CACHE"] = str(_CACHE)
os.environ.pop("FUSIONBENCH_DATA", None)
os.environ.pop("FUSIONBENCH_PLUGINS", None)
# pytest puts the folder on this process's path only: programs that the tests start need it too.
_SUPPORT = str(Path(__file__).parent / "support")
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join([_SUPPORT, *filter(None, _PATHS)])


def pytest_configure(config: pytest.Config) -> None:
    lines = fault_lines.lines_of(config)
    if lines is not None:
        config.pluginmanager.register(lines)


def pytest_itemcollected(item: pytest.Item) -> None:
    fault_lines.note_fault(item)


@pytest.fixture
def injected(record_property):
    """Say how many faults a test injected, if not one, and what more its line should tell."""

    def say(count: int, note: str = "") -> None:
        record_property("injections", count)
        record_property("note", note)

    return say


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Send each file whose tests share what the file makes to one worker, so that it is made once.

    Not by `xdist_group`: pytest 9.2 no longer reads where pytest-xdist 3.8 writes a group's name.
    """
    from xdist.scheduler import LoadScopeScheduling

    here = Path(__file__).parent
    shared = {path.name for path in here.rglob("test_*.py") if 'scope="module"' in path.read_text()}

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if file.rsplit("/")[-1] in shared else nodeid

    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of a test with `few(count)` as thorough, except `count` evenly spread ones."""
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            cases.setdefault((item.path, item.originalname), []).append(item)
    for found in cases.values():
        (count,) = found[0].get_closest_marker("few").args
        kept = {len(found) * number // count for number in range(count)}
        for number, item in enumerate(found):
            if number not in kept:
                item.add_marker("thorough")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last to leave (the controller, or the only process) clears the cache."""
    if not hasattr(session.config, "workerinput"):
        import shutil

        run = getattr(session.config, "_xdist_run_id", None) or _find_run(session)
        shutil.rmtree(_CACHE.with_name(f"fusionbench-test-cache-{run}"), ignore_errors=True)


def _find_run(session: pytest.Session) -> str:
    plugin = session.config.pluginmanager.get_plugin("dsession")
    manager = getattr(plugin, "nodemanager", None)
    return getattr(manager, "testrunuid", _RUN)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """Files are complete without it as long as no test pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def without_figures(monkeypatch):
    """Reports without figures, which take most of their time."""
    monkeypatch.setattr("fusionbench.report.build.write_figures", lambda *_: [])


@pytest.fixture(scope="module")
def no_figures():
    """The same for a whole file, its fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusionbench.report.build.write_figures", lambda *_: [])
        yield


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process: exit code, standard output, standard error."""

    from fusionbench.cli import main as cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fusionbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run
