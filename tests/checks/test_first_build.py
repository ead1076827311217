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
