"""The tutorial runs, what `new-method` and `new-task` write passes its own tests, and `doctor`."""

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
from fusionbench.registry.plugins import check_plugins, load_encoder, load_method, require_sound

HOME = Path(fusionbench.__file__).parent.parent
PAGE = HOME / "docs" / "add-a-method.md"
CATALOG = read_catalog()
KINDS = ("token_gate", "joined", "asked", "halved", "nudge")
"""A method of each kind that the tutorial shows."""
tutorial_only = pytest.mark.skipif(not PAGE.exists(), reason="tests of an installed wheel")


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


@tutorial_only
def test_every_block_of_python_names_its_file():
    assert len(files()) == PAGE.read_text().count("```python") >= 4


@pytest.mark.thorough
@tutorial_only
def test_the_tests_of_a_new_task_pass_unmodified(tmp_path):
    assert passed(new_package("task", "first_try", tmp_path, CATALOG)) >= 2


class Outcomes(list):
    """A plug-in of pytest that keeps the outcome of each test that ran."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.append(report.outcome)


@pytest.mark.thorough
@tutorial_only
def test_the_tests_of_a_new_method_pass_unmodified(tmp_path, monkeypatch):
    # In this process: another one would import torch once more.
    home, found = new_package("method", "first_try", tmp_path, CATALOG), Outcomes()
    monkeypatch.chdir(home)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(home), *sys.path])
        assert pytest.main(settings(home), plugins=[found]) == 0
    assert found.count("passed") >= 10 and "failed" not in found


@tutorial_only
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


@tutorial_only
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_generated_tests_survive_the_replacement_of_the_example(name, tmp_path):
    home = new_package("method", "first_try", tmp_path, CATALOG)
    (source,) = [text for path, text in files().items() if f'@method("{name}"' in text
                 or f'@method(\n    "{name}"' in text]  # fmt: skip
    (home / "fusionbench_first_try.py").write_text(source)
    assert passed(home) > 10


@tutorial_only
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


@tutorial_only
def test_nothing_is_overwritten(tmp_path):
    new_package("task", "twice", tmp_path, CATALOG)
    with pytest.raises(UserError, match="exists already"):
        new_package("task", "twice", tmp_path, CATALOG)


# A broken plug-in stops nothing, and `doctor` names it with its distribution and traceback.

# Tasks, since a task's import needs no torch: the children are quick.
TASK = """
from fusionbench.api import Task, task

@task("{name}", version=1, family="toy", group="fine")
class Toy(Task):
    chance = 0.5
    def load(self): ...
"""
BROKEN = {
    "raises": (TASK + "\nraise RuntimeError('boom in the middle')\n", "boom in the middle"),
    "wrong_class": (TASK + "\nToy = int\n", "class int, which is not a Task"),
    "lost_class": (TASK + "\ndel Toy\n", "None, which is not a Task"),
    "leaves": (TASK + "\nraise SystemExit('bye')\n", "SystemExit: bye"),
    "crashes": (TASK + "\nimport os\nos._exit(3)\n", "exit code 3"),
    "nothing": ("x = 1\n", "declares no method, task, benchmark or encoder"),
    "torn": (TASK + "\ndef (:\n", "syntax error"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module on the path as an installed distribution with an entry point."""

    def put(name, source, version="1.2"):
        folder = tmp_path / "site"
        info = folder / f"{name}_dist-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source.format(name=name))
        metadata = f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[fusionbench.plugins]\nany = {name}\n")
        monkeypatch.syspath_prepend(str(folder))

    return put


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_installed_plugin_is_named_with_its_distribution_and_what_it_raised(kind, install):
    source, told = BROKEN[kind]
    install(f"broken_{kind}", source)
    catalog = read_catalog()
    assert "planted_layer" in catalog.tasks and "mema" in catalog.methods
    [checked] = [one for one in check_plugins(catalog) if "broken" in one.source]
    assert checked.source == f"broken_{kind}-dist 1.2"
    assert not checked.sound
    assert told in "\n".join([*checked.problems, checked.traceback])
    with pytest.raises(UserError, match=re.escape(f"broken_{kind}-dist 1.2")):
        require_sound(catalog)


def test_a_traceback_names_the_line_in_the_plugin(install):
    install("raiser", BROKEN["raises"][0])
    [checked] = check_plugins(read_catalog())
    assert "Traceback" in checked.traceback and "raiser.py" in checked.traceback
    assert "raise RuntimeError('boom in the middle')" in checked.traceback


def test_a_sound_plugin_is_sound_and_says_what_it_brings(install):
    install("fine", TASK)
    [checked] = check_plugins(read_catalog())
    assert checked.sound and checked.declares == ("task fine",)
    require_sound(read_catalog())


def test_a_built_in_wins_and_the_warning_names_both_and_strictly_it_is_an_error(install):
    install("thief", TASK.replace("{name}", "planted_layer"))
    catalog = read_catalog()
    assert catalog.tasks["planted_layer"].source == "built-in"
    [problem] = catalog.problems
    assert "thief-dist 1.2" in str(problem) and "already built-in, which is kept" in str(problem)
    with pytest.raises(UserError, match="thief-dist"):
        require_sound(catalog)


@pytest.mark.thorough
def test_other_commands_go_on_and_strictly_they_do_not(install, call):
    install("raiser", BROKEN["raises"][0])
    install("torn", BROKEN["torn"][0])
    code, out, said = call("list", "tasks")
    assert code == 0 and "planted_layer" in out
    assert "torn-dist 1.2" in said
    code, out, said = call("list", "tasks", "--strict-plugins")
    assert code == 2 and not out
    assert "dist 1.2" in said and "fusionbench doctor" in said


@pytest.mark.thorough
def test_doctor_shows_the_machine_and_the_broken_plugin(install, call, tmp_path, monkeypatch):
    install("raiser", BROKEN["raises"][0])
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "features").mkdir(parents=True)
    (tmp_path / "cache" / "features" / "x.npy").write_bytes(bytes(3 * 2**20))
    code, out, _ = call("doctor")
    assert code == 0
    for title in ("ENVIRONMENT", "DEVICE", "CACHE", "TASKS", "ENCODERS", "PLUG-INS"):
        assert f"{title}\n" in out
    assert f"python {sys.version.split()[0]}" in out and "torch" in out and "CPU cores" in out
    assert "features 3.0 MiB" in out and "GiB free" in out
    assert "nano: " in out and "raiser-dist 1.2" in out and "BROKEN" in out
    assert "RuntimeError: boom in the middle" in out


def test_doctor_fails_strictly_after_it_has_said_everything(call, tmp_path, monkeypatch):
    from fusionbench.cli import doctor

    monkeypatch.setattr(doctor, "_device", lambda: ["not asked"])
    file = tmp_path / "raiser.py"
    file.write_text(BROKEN["raises"][0].format(name="raiser"))
    code, out, said = call("doctor", "--plugin", file, "--strict-plugins")
    assert code == 2 and "boom in the middle" in out
    assert "1 plug-ins cannot be used" in said
