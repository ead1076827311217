"""The tutorial's code runs, and what `new-method` and `new-task` write passes its own tests."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from toy_cells import train_cell

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.checks.first_build import first_uses
from fusionbench.cli.extend import new_package
from fusionbench.registry.catalog import describe, read_catalog
from fusionbench.registry.plugins import load_encoder, load_method

HOME = Path(fusionbench.__file__).parent.parent
PAGE = HOME / "docs" / "add-a-method.md"
CATALOG = read_catalog()
KINDS = ("token_gate", "joined", "asked", "halved", "nudge")
"""A method of each kind that the tutorial shows."""
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="tests of an installed wheel")


def files() -> dict[str, str]:
    """The tutorial's Python, by the path in each block's first line."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(blocks)


def settings(package: Path) -> list[str]:
    """Arguments with which pytest runs a package's own tests and reads its own settings only."""
    own = ["--rootdir", str(package), "-c", str(package / "pyproject.toml")]
    return ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *own, str(package / "tests")]


def passed(package: Path) -> int:
    """How many of a package's own tests pass; all of them must."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings(package)],
        cwd=package, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.findall(r"(\d+) passed", done.stdout)[-1])


def test_every_block_of_python_names_its_file():
    assert len(files()) == PAGE.read_text().count("```python") >= 4


def test_the_tests_of_a_new_task_pass_unmodified(tmp_path):
    assert passed(new_package("task", "first_try", tmp_path, CATALOG)) >= 2


class Outcomes(list):
    """A plug-in of pytest that keeps the outcome of each test that ran."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.append(report.outcome)


def test_the_tests_of_a_new_method_pass_unmodified(tmp_path, monkeypatch):
    # In this process: another one would import torch once more.
    home, found = new_package("method", "first_try", tmp_path, CATALOG), Outcomes()
    monkeypatch.chdir(home)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(home), *sys.path])
        assert pytest.main(settings(home), plugins=[found]) == 0
    assert found.count("passed") >= 10 and "failed" not in found


def test_the_tutorial_from_the_first_line_to_the_last(tmp_path, monkeypatch):
    home = new_package("method", "token_gate", tmp_path, CATALOG)
    for name, source in files().items():
        assert (tmp_path / name).parent in (home, home / "tests")
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(str(home))
    tests = runpy.run_path(str(home / "tests" / "test_equation.py"))
    found = [value for name, value in tests.items() if name.startswith("test_")]
    assert len(found) == 3
    for test in found:
        test()
    catalog = read_catalog([str(home)])
    assert not catalog.problems
    for name in KINDS:
        card = catalog.methods[name]
        record, _ = train_cell(load_method(card), steps=3, **card.settings)
        assert record.status == "done" and not record.unmoved
        assert first_uses(card.file) == []
    assert catalog.methods["token_gate"].switches == {"gated": (False,), "depth": (0.25, 0.75)}
    assert load_encoder(describe(catalog, "tiny")).shape.layers == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_generated_tests_survive_the_replacement_of_the_example(name, tmp_path):
    home = new_package("method", "first_try", tmp_path, CATALOG)
    (source,) = [text for path, text in files().items() if f'@method("{name}"' in text
                 or f'@method(\n    "{name}"' in text]  # fmt: skip
    (home / "fusionbench_first_try.py").write_text(source)
    assert passed(home) > 10


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mema", "exists already"),
        ("Mema2", "not a valid"),
        ("all", "not a valid"),
        ("a-b", "not a valid"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused(name, told, tmp_path):
    with pytest.raises(UserError, match=told):
        new_package("method", name, tmp_path, CATALOG)


def test_nothing_is_overwritten(tmp_path):
    new_package("task", "twice", tmp_path, CATALOG)
    with pytest.raises(UserError, match="exists already"):
        new_package("task", "twice", tmp_path, CATALOG)
