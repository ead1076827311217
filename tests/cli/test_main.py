"""The command line: quick, light, and every mistake answered with one line and a hint."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import InProcessLauncher, loaded_after
from plugin_files import GOOD

import fusionbench
import fusionbench as fb
from fusionbench.api.errors import UserError
from fusionbench.launchers import local

ROOT = Path(fusionbench.__file__).parent.parent
HEAVY = ("torch", "timm", "transformers", "pandas", "seaborn", "scipy", "matplotlib", "sklearn")


@pytest.fixture
def refused(call):
    """A command that must be refused as wrong usage, in two lines; the error line."""

    def run(*arguments):
        code, out, said = call(*arguments)
        lines = said.strip().splitlines()
        assert code == 2 and not out, (code, out, said)
        assert len(lines) == 2 and lines[1].startswith("hint: "), said
        assert lines[0].startswith("error: ")
        return said

    return run


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    return file


LIGHT = (
    ["--help"], ["run", "--help"], ["list", "methods"], ["list", "tasks"], ["list", "encoders"],
    ["list", "methods", "--json"], ["list", "methods", "--long"], ["ablate", "--help"],
    ["doctor", "--help"], ["new-method", "--help"],
    ["run", "--dry-run", "--tasks", "planted_layer", "--out", "nowhere"],
)  # fmt: skip


def test_looking_and_planning_import_nothing_heavy(tmp_path):
    assert loaded_after(HEAVY, LIGHT, tmp_path) == {}


def test_no_command_shows_the_help(call):
    _, out, said = call()
    assert "Usage:" in out + said and "report" in out + said


def test_every_method_and_task_is_listed_with_version_settings_and_source(call, plugin):
    code, out, _ = call("list", "methods", "--plugin", plugin)
    assert code == 0
    lines = out.splitlines()
    family = next(i for i, line in enumerate(lines) if line.startswith("blend"))
    (row,) = [line for line in lines[family:] if line.startswith("  -wide")]
    assert row.split() == ["-wide", "width=16", "(from", f"{plugin})"]
    _, out, _ = call("show", "blend-wide", "--plugin", plugin)
    assert "settings    width=16, kind=soft, layers=(1,2)" in out and "version     3" in out
    _, out, _ = call("list", "tasks", "--plugin", plugin)
    assert re.search(r"^  far_task: pip install no-such-package-here$", out, re.MULTILINE)


def test_lists_for_programs_are_json_without_paths_of_this_machine(call):
    for kind in ("methods", "tasks", "encoders"):
        code, out, _ = call("list", kind, "--json")
        assert code == 0 and {"name"} <= json.loads(out)[0].keys()
    _, out, _ = call("list", "methods", "--json")
    assert str(ROOT) not in out


def test_a_broken_plugin_is_named_and_the_command_goes_on(call, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def (:")
    code, out, said = call("list", "methods", "--plugin", broken)
    assert code == 0 and "penultimate" in out
    assert said == f"note: {broken}: line 1: syntax error: invalid syntax\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "lasst"], "no method 'lasst'; did you mean 'last'?"),
        (["--tasks", "planted_layr"], "no task 'planted_layr'; did you mean 'planted_layer'?"),
        (["--encoder", "nan"], "no encoder 'nan'; did you mean 'nano'?"),
        (["--preset", "quik"], "no preset 'quik'; did you mean 'quick'?"),
        (["--set", "mema.reducton=2"], "did you mean 'mema.reduction'?"),
        (["--set", "mema.reduction=two"], "mema.reduction must be an integer, got 'two'"),
        (["--set", "mema=2"], "cannot read --set 'mema=2'"),
        (["--methods", "last", "--set", "mema.reduction=2"], "not among the chosen methods"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--plugin", "/no/such/file.py"], "no plug-in at /no/such/file.py"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["nothing.yaml"], "cannot read the study nothing.yaml"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_wrong_usage_is_one_line_with_a_hint_before_anything_runs(
    refused, tmp_path, arguments, said, dry
):
    error = refused("run", *arguments, *dry, "--out", tmp_path / "out")
    assert said in error
    assert not list((tmp_path / "out").glob("cells/*"))


def test_an_unknown_option_and_a_wrong_number_exit_with_2_and_no_traceback(call):
    for arguments in (["run", "--mehtods", "all"], ["run", "--seeds", "many"], ["list", "cats"]):
        code, _, said = call(*arguments)
        assert code == 2 and "Traceback" not in said and "Error" in said


def test_a_missing_task_named_on_the_command_line_says_how_to_get_it(refused, plugin, tmp_path):
    error = refused("run", "--tasks", "far_task", "--plugin", plugin, "--out", tmp_path / "o")
    assert "hint: get it with: pip install no-such-package-here" in error


def test_a_study_file_and_a_preset_exclude_each_other(refused, tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text("seeds: 1")
    assert "exclude each other" in refused("run", study, "--preset", "quick")


def test_an_unknown_key_in_a_study_answers_with_the_nearest(refused, tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text("sedes: 1")
    assert "unknown key 'sedes'; did you mean 'seeds'?" in refused("run", study)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_is_a_file_is_refused(refused, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    error = refused("run", "--tasks", "planted_layer", "--out", tmp_path / place)
    assert "is a file" in error or "is not a folder" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_without_permission_is_refused(refused, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    error = refused("run", "--tasks", "planted_layer", "--out", tmp_path / "out")
    assert "no permission to write" in error and "--out" in error


def test_a_report_of_nothing_is_refused(refused, tmp_path):
    assert "no results in" in refused("report", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no records" in refused("report", tmp_path / "empty")


def test_a_dry_run_names_cells_time_disk_and_cache_and_writes_nothing(call, tmp_path):
    code, out, _ = call(
        "run", "--dry-run", "--tasks", "planted_layer", "--methods", "last,layer[index=1]",
        "--seeds", "2", "--out", tmp_path / "out",
    )  # fmt: skip
    _, every, _ = call(
        "run", "--dry-run", "--tasks", "planted_layer", "--methods", "last,layer[index=1]",
        "--seeds", "2", "--out", tmp_path / "out", "--full",
    )  # fmt: skip
    assert re.search(r"2 +layer\[index=1\] +planted_layer +\w+ +index=1", every)
    assert code == 0
    assert "4 of 4 cells to run, 0 are there already" in out
    assert re.search(r"time: about .*rough guess", out)
    assert re.search(r"disk: hidden states at most \d+ MiB; the limit is 20 GiB", out)
    assert re.search(r"cached: \d+ MiB", out)
    assert re.search(r"^2 +layer\[index=1\]$", out, re.MULTILINE)
    assert re.search(r"^4 +planted_layer$", out, re.MULTILINE)
    assert not (tmp_path / "out").exists()


def test_the_installed_module_runs_from_any_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fusionbench", "list", "methods"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "penultimate" in done.stdout, done.stderr


def test_a_machine_without_the_report_s_packages_is_told_so_and_keeps_its_records(monkeypatch):
    from fusionbench.api.errors import UserError
    from fusionbench.cli import summary as closing

    monkeypatch.setitem(sys.modules, "tabulate", None)
    for name in [name for name in sys.modules if name.startswith("fusionbench.report.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="tabulate") as error:
        closing.report_writer()
    assert "records are safe" in error.value.hint


def test_the_help_has_every_command_in_one_of_four_groups_with_a_whole_sentence(call):
    from fusionbench.cli.app import GROUPS, app

    code, out, _ = call("--help")
    named = [name for names in GROUPS.values() for name in names]
    known = [one.name for one in app.registered_commands]
    assert code == 0 and set(named) == set(known) and len(named) == len(known)
    places = [out.index(f"{title}:") for title in (*GROUPS, "Examples")]
    assert places == sorted(places)
    assert max(map(len, out.splitlines())) <= 80 and "..." not in out.split("\n", 1)[1]


def test_the_version_is_that_of_the_package(call):
    from fusionbench import __version__

    assert call("--version")[:2] == (0, f"fusionbench {__version__}\n")


# `fusionbench.run` in Python: names and classes in, data frames out, errors in words.

OWN = '''
"""A method of one's own."""
from fusionbench.api import Fused, Fusion, method


@method("own", version=1)
class Own(Fusion):
    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((1,),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))


class Plain(Fusion):
    pass
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    file = tmp_path / "own_file.py"
    file.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_file", file)
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "own_file", made)
    spec.loader.exec_module(made)
    return made


def test_a_class_and_a_name_run_and_come_back_as_frames(
    module, tmp_path, monkeypatch, without_figures
):
    monkeypatch.setattr(local, "LocalLauncher", InProcessLauncher)
    found = fb.run(
        [module.Own, "penultimate"], ["planted_layer"], out=tmp_path / "out", preset="smoke",
        quiet=True,
    )  # fmt: skip
    assert set(found.scores().label) == {"own", "penultimate"}
    assert (tmp_path / "out" / "report" / "report.md").exists()


def test_a_class_that_cannot_be_used_is_refused_in_words(module, tmp_path):
    with pytest.raises(UserError, match="Plain in .*own_file.py is not registered as a method"):
        fb.run([module.Plain], ["planted_layer"], out=tmp_path / "out", preset="smoke")
    typed = type("Typed", (module.Own,), {"__module__": "nowhere"})
    with pytest.raises(UserError, match="the class Typed is in no file"):
        fb.run([typed], ["planted_layer"], out=tmp_path / "out", preset="smoke")
    assert not (tmp_path / "out").exists()


def test_nothing_is_not_everything(tmp_path):
    for methods, tasks in (([], ["planted_layer"]), (["last"], [])):
        with pytest.raises(UserError, match="is empty"):
            fb.run(methods, tasks, out=tmp_path / "out", preset="smoke")
    assert not (tmp_path / "out").exists()


BROKEN = OWN.replace("return Fused", "raise ValueError('no such layer')\n        return Fused")


def test_failed_cells_are_counted_and_a_call_without_any_score_raises(
    tmp_path, monkeypatch, without_figures, capsys
):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setattr(local, "LocalLauncher", InProcessLauncher)
    given = {"plugins": [tmp_path / "broken.py"], "preset": "smoke", "quiet": True}
    with pytest.raises(UserError, match="1 of 1 cells failed"):
        fb.run(["own"], ["planted_layer"], out=tmp_path / "one", **given)
    found = fb.run(["own", "last"], ["planted_layer"], out=tmp_path / "two", **given)
    assert list(found.scores().label) == ["last"]
    said = capsys.readouterr().err
    assert "1 of 2 cells failed" in said and "no such layer" in said


def test_an_interrupted_call_is_an_interrupt(tmp_path, monkeypatch):
    class Interrupted(InProcessLauncher):
        def run(self, jobs, on_event):
            raise KeyboardInterrupt

    monkeypatch.setattr(local, "LocalLauncher", Interrupted)
    with pytest.raises(KeyboardInterrupt, match="same call resumes"):
        fb.run(["last"], ["planted_layer"], out=tmp_path / "out", preset="smoke", quiet=True)


SCRIPT = """
from pathlib import Path

import fusionbench as fb

Path("runs.txt").open("a").write("once ")
fresh = fb.run(["penultimate"], ["planted_layer"], out="out", preset="smoke", quiet=True)
print(len(fresh.scores()))
"""


@pytest.mark.thorough
def test_a_script_without_a_guard_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1" and "Traceback" not in done.stderr
    assert (tmp_path / "runs.txt").read_text() == "once "


def test_a_stream_that_was_closed_before_the_start_is_no_traceback():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m fusionbench list tasks >&-"], cwd=ROOT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr
