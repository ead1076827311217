"""A broken plug-in stops nothing, and `doctor` names it with its distribution and traceback."""

import re
import sys

import pytest

from fusionbench.api.errors import UserError
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import check_plugins, require_sound

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


def test_other_commands_go_on_and_strictly_they_do_not(install, call):
    install("raiser", BROKEN["raises"][0])
    install("torn", BROKEN["torn"][0])
    code, out, said = call("list", "tasks")
    assert code == 0 and "planted_layer" in out
    assert "torn-dist 1.2" in said
    code, out, said = call("list", "tasks", "--strict-plugins")
    assert code == 2 and not out
    assert "dist 1.2" in said and "fusionbench doctor" in said


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
