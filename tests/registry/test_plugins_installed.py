"""A stranger's package of 40 lines, installed by pip: listed, run, named in its records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusionbench
from fusionbench.records.store import Store

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stranger-fusion"
version = "3.1"
[project.entry-points."fusionbench.plugins"]
stranger = "stranger_fusion"
[tool.setuptools]
py-modules = ["stranger_fusion"]
"""
MODULE = '''
"""The mean of two layers, from a stranger."""
from fusionbench.api import Encoder, Fused, Fusion, StackShape, encoder, method


@method("two_layers", version=1, parameters="0")
class TwoLayers(Fusion):
    def __init__(self, shape, *, other: int = 1):
        super().__init__(shape)
        self.taps = ((shape.layer(-2),), (shape.layer(other),))

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden.mean(dim=0)))


@encoder("blank", version=1, layers=2, dim=8, patch=16, size=32)
class Blank(Encoder):
    size = 32
    shape = StackShape(layers=2, dim=8, grid=(2, 2))

    def embed(self, images):
        return images.float().mean(dim=(1, 2, 3))[:, None, None].expand(-1, 4, 8) / 255

    def block(self, index, tokens):
        return tokens * index

    def norm(self, tokens):
        return tokens
'''
HOME = str(Path(fusionbench.__file__).parent.parent)


def lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", reason="pip builds without a network only with setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "stranger_fusion.py").write_text(MODULE)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def call(installed: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fusionbench", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=installed,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([HOME, str(installed)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_has_at_most_forty_lines():
    assert lines(PYPROJECT) + lines(MODULE) <= 40


def test_it_appears_in_the_lists(installed):
    assert "stranger-fusion 3.1" in call(installed, "list", "methods")
    assert "two_layers  from stranger-fusion 3.1" in call(installed, "list", "methods", "--long")
    assert "blank" in call(installed, "list", "encoders")


@pytest.mark.slow
def test_it_runs_and_every_record_names_it_and_its_version(installed, tmp_path):
    call(installed, "run", "--methods", "two_layers", "--encoder", "blank", "--preset", "smoke",
         "--tasks", "scenes_count", "--out", tmp_path, "--quiet", "--workers", "1")  # fmt: skip
    [record] = Store.open(tmp_path).records()
    assert record.status == "done", record.reason
    provenance = record.provenance
    assert provenance["method"] == provenance["encoder"] == "stranger-fusion 3.1"
    assert provenance["task"] == "built-in"
    assert list(provenance["plugin_files"]) == ["stranger_fusion.py"]
    assert record.spec.encoder == "blank" and record.taps == ((1,), (1,))
    report = (tmp_path / "report" / "report.md").read_text()
    assert "stranger-fusion 3.1" in report
