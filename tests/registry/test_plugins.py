"""Plug-ins: encoders of a file, and a package installed by pip: listed, run, named in records."""

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from plugin_files import BLANK_ENCODER
from toy_records import spec

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.cli.listing import encoders_text, json_text
from fusionbench.launchers.keys import feature_key
from fusionbench.records.store import Store
from fusionbench.registry.catalog import describe, read_catalog, require_usable
from fusionbench.registry.plugins import import_from, load_encoder
from fusionbench.study.data import task_hash

SOURCE = """
import torch
from einops import rearrange
from torch import nn

from fusionbench.api import Encoder, StackShape, encoder


@encoder("patchwork", version=1, layers=2, dim=12, patch=2, size=4, weights=("patchwork.bin",))
class Patchwork(Encoder):
    def __init__(self, *, image_size: int = 0):
        super().__init__()
        self.size = image_size or 4
        side = self.size // 2
        self.shape = StackShape(layers=2, dim=12, grid=(side, side))
        self.scale = nn.Parameter(torch.ones(()))

    def embed(self, images):
        return rearrange(images.float(), "b (y p) (x q) c -> b (y x) (p q c)", p=2, q=2)

    def block(self, index, tokens):
        return self.scale * tokens + index

    def norm(self, tokens):
        return tokens
"""


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "patchwork.py"
    file.write_text(SOURCE)
    (tmp_path / "patchwork.bin").write_bytes(b"weights")
    return file


def test_an_encoder_is_described_without_importing_it(plugin):
    plugin.write_text(SOURCE + "\nraise RuntimeError('imported')\n")
    card = describe(read_catalog([str(plugin)]), "patchwork")
    assert (card.layers, card.dim, card.grid, card.prefix, card.size) == (2, 12, (2, 2), 0, 4)
    assert card.available and card.origin == str(plugin) and len(card.weights) == 32


def test_it_is_listed_with_where_it_comes_from(plugin):
    catalog = read_catalog([str(plugin)])
    assert "patchwork" in encoders_text(catalog) and str(plugin) in encoders_text(catalog)
    assert "patchwork" in [card["name"] for card in json.loads(json_text("encoders", catalog))]


def test_its_weights_and_its_version_are_its_identity(plugin):
    first = describe(read_catalog([str(plugin)]), "patchwork").weights
    (plugin.parent / "patchwork.bin").write_bytes(b"other")
    second = describe(read_catalog([str(plugin)]), "patchwork").weights
    plugin.write_text(SOURCE.replace("version=1", "version=2"))
    third = describe(read_catalog([str(plugin)]), "patchwork").weights
    assert len({first, second, third}) == 3


def test_its_edited_code_reads_no_hidden_states_of_the_old_code(plugin):
    def key():
        card = describe(read_catalog([str(plugin)]), "patchwork")
        cell = SimpleNamespace(spec=spec("last", "digits", 0), encoder=card)
        return feature_key(cell, SimpleNamespace(images="i", count=3), size=4).path((2,))

    first = key()
    plugin.write_text(SOURCE.replace("tokens + index", "tokens - index"))
    assert key() != first
    plugin.write_text(SOURCE)
    assert key() == first


TASK = """
from pathlib import Path

import numpy as np

from fusionbench.api import Split, Task, TaskData, task


@task("flipped", version=1, family="flipped", group="fine")
class Flipped(Task):
    chance = 0.5
    READS

    def load(self):
        flip = int((Path(__file__).parent / "labels" / "flip.txt").read_text())
        parts = [
            Split(items=tuple(f"{name}-{i}" for i in range(4)), images=np.arange(4) + 4 * n,
                  questions=("which?",) * 4, answers=(np.arange(4) + flip) % 2)
            for n, name in enumerate(("train", "val", "test"))
        ]
        images = np.arange(12 * 27, dtype=np.uint8).reshape(12, 3, 3, 3)
        return TaskData(images=images, answers=("a", "b"), train=parts[0], val=parts[1],
                        test=parts[2])
"""


@pytest.mark.fault("stored data", "a file that a task of one's own reads changed", "read anew")
@pytest.mark.parametrize(
    ("reads", "noticed"), [("", True), ("reads = ('labels',)", True), ("reads = ()", False)]
)
def test_a_task_s_own_files_are_read_again_unless_it_says_that_it_has_none(
    reads, noticed, tmp_path, monkeypatch
):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    file, labels = tmp_path / "flipped.py", tmp_path / "labels" / "flip.txt"
    labels.parent.mkdir()
    file.write_text(TASK.replace("READS", reads))
    found = []
    for flip in ("0", "1\n"):
        labels.write_text(flip)
        found.append(task_hash(read_catalog([str(file)]).tasks["flipped"]))
    assert (found[0] != found[1]) is noticed


def test_files_of_a_task_that_are_no_names_are_refused_with_its_name(tmp_path):
    (tmp_path / "flipped.py").write_text(TASK.replace("READS", "reads = 3"))
    name = str(tmp_path / "flipped.py")
    with pytest.raises(UserError, match="reads must name files and folders"):
        require_usable(read_catalog([name]), [name])


def test_without_its_weights_it_is_not_here_and_says_what_is_missing(plugin):
    (plugin.parent / "patchwork.bin").unlink()
    card = describe(read_catalog([str(plugin)]), "patchwork")
    assert not card.available and "patchwork.bin" in card.get


def test_it_is_built_frozen_at_its_own_size_or_another(plugin):
    catalog = read_catalog([str(plugin)])
    for size in (0, 8):
        card = describe(catalog, "patchwork", image_size=size)
        built = load_encoder(card, image_size=size)
        side = size or 4
        assert built.shape.grid == card.grid == (side // 2, side // 2)
        assert not any(p.requires_grad for p in built.parameters())
        states = built.hidden_states(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        assert [float(state.mean()) for state in states] == [0, 1, 3]


def test_one_without_image_size_has_one_size(plugin):
    fixed = SOURCE.replace("self, *, image_size: int = 0", "self").replace("image_size or 4", "4")
    plugin.write_text(fixed)
    catalog = read_catalog([str(plugin)])
    assert load_encoder(describe(catalog, "patchwork")).size == 4
    with pytest.raises(ValueError, match="4 pixels only"):
        describe(catalog, "patchwork", image_size=8)


def test_an_encoder_that_is_not_what_it_declares_is_refused(plugin):
    plugin.write_text(
        SOURCE.replace('"patchwork", version=1, layers=2', '"patchwork", version=1, layers=3')
    )
    card = describe(read_catalog([str(plugin)]), "patchwork")
    with pytest.raises(UserError, match="declares"):
        load_encoder(card)


@pytest.mark.parametrize("name", ["nano", "planted_mine", "dinov2-small"])
def test_a_built_in_encoder_wins_and_the_warning_names_both(plugin, name):
    plugin.write_text(SOURCE.replace('"patchwork", version', f'"{name}", version'))
    catalog = read_catalog([str(plugin)])
    assert name not in catalog.encoders
    assert str(plugin) in str(catalog.problems[0]) and "built-in" in str(catalog.problems[0])


def test_a_slip_of_the_pen_is_answered_with_the_plugins_name(plugin):
    with pytest.raises(ValueError, match="did you mean 'patchwork'"):
        describe(read_catalog([str(plugin)]), "patchwrok")


LAYERS = ("layers=2, dim=12, patch", "layers='2', dim=12, patch")


@pytest.mark.parametrize(
    ("change", "told"),
    [(("size=4", "size=5"), "not a multiple"), (LAYERS, "layers must be an integer")],
)
def test_facts_that_cannot_be_are_problems_of_the_file(plugin, change, told):
    plugin.write_text(SOURCE.replace(*change))
    assert told in str(read_catalog([str(plugin)]).problems[0])


# A stranger's package of 40 lines, installed by pip: listed, run, named in its records.

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

'''
MODULE += BLANK_ENCODER
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


@pytest.mark.thorough
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


def test_an_edit_within_a_second_is_what_runs(tmp_path):
    file = tmp_path / "mine.py"
    for value in (1, 4):
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (1e9, 1e9))
        if value == 1:
            # As Python's own import leaves it.
            py_compile.compile(str(file))
        module = import_from(str(file))
        assert module.VALUE == value
        del sys.modules[module.__name__]
    assert list((tmp_path / "__pycache__").glob("mine.*.pyc"))
