"""One thread, and one cache folder for the whole test run: never the user's."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Before anything of ours is imported. Workers of pytest-xdist share the folder: files in it are
# written whole, so what one of them has rendered or encoded serves all.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
_CACHE = Path(tempfile.gettempdir()) / f"fusionbench-test-cache-{_RUN}"
os.environ["FUSIONBENCH_CACHE"] = str(_CACHE)
os.environ.pop("FUSIONBENCH_DATA", None)
os.environ.pop("FUSIONBENCH_PLUGINS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a module makes go to one worker, so that it is made once."""
    for item in items:
        if _shares(item) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


def _shares(item: pytest.Item) -> bool:
    found = getattr(item, "_fixtureinfo", None)
    fixtures = found.name2fixturedefs.values() if found else ()
    return any(one.scope == "module" for several in fixtures for one in several)


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


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process: exit code, standard output, standard error."""

    from fusionbench import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fusionbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run
