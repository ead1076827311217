"""`fusionbench.run` in Python: names and classes in, data frames out, errors in words."""

import importlib.util

import pytest
from in_process import InProcessLauncher

import fusionbench as fb
from fusionbench.api.errors import UserError
from fusionbench.launchers import local

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
