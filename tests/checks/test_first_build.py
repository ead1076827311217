"""The natural mistakes of a method's author: one message each, with file, line and mend."""

import re

import pytest

from fusionbench.checks.first_build import first_fault
from fusionbench.checks.run import find

FILE = '''"""A method of one's own."""
import torch
from torch import nn
from fusionbench.api import Fused, Fusion, method


@method("own", version=1)
class Own(Fusion):
    def __init__(self, shape):
        {start}
        {taps}
        self.line = nn.Linear(shape.dim, shape.dim)

    def forward(self, hidden, query):
        {result}
'''
RIGHT = {
    "start": "super().__init__(shape)",
    "taps": "self.taps = ((1,), (2,))",
    "result": "return Fused(tokens=self.patches(self.line(hidden.mean(0))))",
}
MISTAKES = {
    "no super": ({"start": "pass"}, 12, "call super().__init__(shape) first"),
    "no taps": ({"taps": "pass"}, 9, "set self.taps = ((layer,), ...) in __init__"),
    "tap too deep": ({"taps": "self.taps = ((1,), (99,))"}, 9, "tap (99,): hidden states are 0"),
    "negative tap": ({"taps": "self.taps = ((-2,),)"}, 9, "shape.layer(-2) counts from the end"),
    "bare index": ({"taps": "self.taps = (1, 2)"}, 9, "each tap is a tuple of integers"),
    "bare tensor": ({"result": "return self.line(hidden[0])"}, 14, "return Fused(tokens=...)"),
    "no token axis": (
        {"result": "return Fused(tokens=self.line(hidden[0])[:, 0])"}, 14,
        "keep the axis of tokens",
    ),
    "too wide": (
        {"result": "return Fused(tokens=torch.cat(list(hidden), -1))"}, 14,
        "set self.out_dim to the width, 2 * shape.dim",
    ),
    "wrong product": (
        {"result": "return Fused(tokens=self.line(hidden[0, :, :, :3]))"}, 15, "dim is shape.dim",
    ),
}  # fmt: skip


def fault(folder, **changes):
    file = folder / "mine.py"
    file.write_text(FILE.format(**RIGHT | changes))
    (subject,) = find(file)
    return first_fault(subject), file


@pytest.mark.fault(
    "plug-ins and workers",
    "a declaration or a class that cannot be used",
    "one message with file, line and mend, exit code 2",
)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_message_with_file_line_and_mend(tmp_path, name):
    changes, line, mend = MISTAKES[name]
    found, file = fault(tmp_path, **changes)
    assert found.startswith(f"{file}:{line}: ") and mend in found, found
    assert "\n" not in found


def test_a_right_method_and_every_built_in_one_has_no_fault(tmp_path):
    assert fault(tmp_path)[0] is None
    assert [subject.name for subject in find("all") if first_fault(subject)] == []


def test_the_command_stops_at_it(call, tmp_path):
    _, file = fault(tmp_path, taps="pass")
    code, out, _ = call("check", file)
    assert code == 1 and re.fullmatch(rf"own: cannot be used\n  {file}:9: .*taps.*\n", out)


def test_a_run_refuses_a_tap_that_the_encoder_does_not_have(tmp_path):
    from fusionbench.checks.toy import SHAPE
    from fusionbench.harness.model import build_fusion

    for taps in ("self.taps = ((-2,),)", "self.taps = ((99,),)"):
        _, file = fault(tmp_path, taps=taps)
        (subject,) = find(file)
        with pytest.raises(ValueError, match="Own reads hidden state .*, and this encoder has 0"):
            build_fusion(subject.cls, {}, SHAPE)


DECLARED = """from fusionbench.api import Fusion, method


@method("{name}", version=1{more})
class Own(Fusion):
    def __init__(self, shape{settings}):
        super().__init__(shape)
        self.taps = ((1,),)
"""
WRONG = {
    "no such control": (
        {"more": ', control="repeet"'}, 4, "control='repeet' of method 'own' is no method; did you "
        "mean 'repeat'?", 'control="none: it reads one layer"',
    ),
    "positional setting": (
        {"settings": ", ratio=0.5"}, 6, "'ratio' of Own stands before `*`",
        "def __init__(self, shape, *, ratio=...)",
    ),
    "clash with a built-in": (
        {"name": "last"}, 4, "method 'last' is already built-in", '@method("my_last", ...)',
    ),
    "a default that is no setting": (
        {"settings": ", *, ratio=None"}, 6, "the default of 'ratio' is None", "doctor",
    ),
}  # fmt: skip


def declared(file, name="own", more="", settings=""):
    file.write_text(DECLARED.format(name=name, more=more, settings=settings))
    return file


@pytest.mark.fault(
    "plug-ins and workers",
    "a declaration or a class that cannot be used",
    "one message with file, line and mend, exit code 2",
)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_ends_each_command_with_file_line_and_mend(call, tmp_path, name):
    changes, line, words, mend = WRONG[name]
    file = declared(tmp_path / "mine.py", **changes)
    for command in (
        ("run", "--methods", "penultimate", "--plugin", file, "--dry-run"), ("check", file),
    ):  # fmt: skip
        code, _, said = call(*command)
        error, hint = said.strip().splitlines()
        assert code == 2 and error.startswith(f"error: {file}:{line}: ") and words in error
        assert hint.startswith("hint: ") and mend in hint
    # A list shows what is there, and names what is not.
    code, out, said = call("list", "methods", "--plugin", file)
    assert code == 0 and "penultimate" in out and words in said


@pytest.mark.thorough
def test_two_plugins_of_one_name_are_an_error_that_names_both_and_a_note_if_installed(
    call, tmp_path, monkeypatch
):
    first, second = declared(tmp_path / "a.py"), declared(tmp_path / "b.py")
    run = ("run", "--methods", "own", "--preset", "smoke", "--dry-run", "--plugin", first)
    code, _, said = call(*run, "--plugin", second)
    assert code == 2 and f"error: {second}:4: method 'own' is already in {first}" in said
    monkeypatch.setenv("FUSIONBENCH_PLUGINS", str(second))
    code, out, said = call(*run)
    assert code == 0 and "own" in out and f"note: {second}: line 4: method 'own'" in said


def test_a_control_may_be_a_plugin_s_own_method_a_variant_or_a_sentence(call, tmp_path):
    for control in ("own", "mema-readout", "repeat[times=2]", "none", "none: it reads one layer"):
        file = declared(tmp_path / "mine.py", more=f', control="{control}"')
        code, _, said = call("list", "methods", "--plugin", file)
        assert code == 0 and not said, control


def test_the_first_use_of_a_file_builds_and_runs_what_it_declares(tmp_path):
    from fusionbench.checks.first_build import first_uses

    _, file = fault(tmp_path, **MISTAKES["bare tensor"][0])
    assert first_uses(str(file)) == [
        f"method own: {file}:14: forward gave a Tensor; return Fused(tokens=...)"
    ]
    (tmp_path / "right").mkdir()
    _, file = fault(tmp_path / "right")
    assert first_uses(str(file)) == []
    task = tmp_path / "torn.py"
    task.write_text(
        "from fusionbench.api import Task, task\n\n\n"
        "@task('torn', version=1, family='torn', group='fine')\nclass Torn(Task):\n"
        "    chance = 0.5\n\n    def load(self):\n        raise OSError('no disk')\n"
    )
    assert first_uses(str(task)) == [f"task torn: {task}: OSError: no disk"]


def test_a_run_whose_cells_fail_names_line_and_mend_once(call, tmp_path, monkeypatch):
    _, file = fault(tmp_path, **MISTAKES["bare tensor"][0])
    code, out, said = call(
        "run", "--preset", "smoke", "--plugin", file, "--methods", "own", "--tasks",
        "planted_layer", "--seeds", 2, "--out", tmp_path / "r",
    )  # fmt: skip
    assert code == 1 and "2 failed" in out
    assert said.count(f"note: method own: {file}:14: forward gave a Tensor; return Fused(") == 1
