"""Cells that were trained, their records and the report's CSV: alike, leaking, and without labels.

What is true is known because of how the cells were made: one module under several names, labels
that were dealt anew, a learning rate that was picked on test. The long forms (`-m slow`) have the
suites that a bound on a rate needs.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_cells import BUDGET, BrightHalf, PixelToyEncoder, run_cell
from toy_encoder import SHAPE
from toy_suite import quick_disk, rows

from fusionbench.api.fusion import Fusion
from fusionbench.api.tasks import Split
from fusionbench.api.types import Fused
from fusionbench.harness.bundle import cut
from fusionbench.harness.cell import Tuned, choose_lr
from fusionbench.harness.materials import Materials
from fusionbench.models.encoders.features import FeatureKey, encode
from fusionbench.records.cell import CellSpec
from fusionbench.records.history import Request
from fusionbench.records.store import Items, Store
from fusionbench.study.study import QUICK, as_plain

SEEDS = 5
TRAINED = {
    "attentive": replace(BUDGET, steps=30),
    "ridge": replace(
        BUDGET, steps=8, reader="ridge", random_layer="seed", resample="distinct", draw=75
    ),
}
"""By reader: enough for most runs to learn the task, and for some to fail as runs do."""
LR = 1e-2
RATES = tuple(float(rate) for rate in np.geomspace(1e-3, 1e-1, 9))
DECIDED = ("better", "worse", "better by less than the margin", "worse by less than the margin")
TAP = ((3,),)


class Mixed(Fusion):
    """Reads one layer through a matrix of its own; each subclass has its own initial values."""

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = TAP
        self.mix = torch.nn.Linear(shape.dim, shape.dim)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(self.mix(hidden[0])))


NAMES = ("penultimate", "repeat", *(f"copy_{i}" for i in range(6)))
CLASSES = {name: type(f"Mixed_{name}", (Mixed,), {}) for name in NAMES}


class Halves(BrightHalf):
    """Which half is brighter, dimly; other images for each draw, labels true or dealt anew."""

    def __init__(self, draw, labels):
        self.rng, self.labels = np.random.default_rng((71, draw)), labels

    def load(self):
        data = super().load()
        left = self.rng.permutation(np.arange(150) % 2)
        images = self.rng.integers(0, 120, size=(150, 4, 4, 3)).astype(np.uint8)
        images[left == 1, :, :2] += 25
        images[left == 0, :, 2:] += 25
        parts = (range(50), range(50, 70), range(70, 150))
        train, val, test = (self.split(left, part) for part in parts)
        if self.labels == "dealt anew":
            train = replace(train, answers=self.rng.permutation(train.answers))
        return replace(data, images=images, train=train, val=val, test=test)

    def split(self, left, part):
        images = np.repeat(np.array(part), 2)
        asks = np.tile(["is the left half bright?", "is it light on the left?"], len(part))
        right = left[images].astype(np.int64)
        if self.labels == "none":
            right = self.rng.integers(0, 2, len(right))
        return Split(
            items=tuple(f"{image}: {ask}" for image, ask in zip(images, asks, strict=True)),
            images=images,
            questions=tuple(map(str, asks)),
            answers=right,
        )


@pytest.fixture
def suite():
    """A function of a draw, its labels and a reader that gives what one suite is trained on."""

    def make(draw, labels, reader="attentive"):
        budget = TRAINED[reader]
        encoder, task = PixelToyEncoder(), Halves(draw, labels)
        name = f"halves_{labels.replace(' ', '_')}_{draw}"
        bundle, images = cut(name, task.load(), budget)
        key = FeatureKey(
            weights="toy", size=4, images=bundle.images, count=bundle.count, precision="fp32",
            dtype=BUDGET.feature_dtype,
        )  # fmt: skip
        encode(encoder, images, key, list(TAP), limit_gib=1)
        return Materials(
            name=name, task=task, bundle=bundle, budget=budget, key=key,
            shape=replace(encoder.shape, query_dim=SHAPE.query_dim), device=torch.device("cpu"),
            encoder=encoder,
        )  # fmt: skip

    return make


def trained(materials, name, seed, *, lr=LR, stage="evaluate"):
    """(record, scores) of one cell, as a worker trains it."""
    spec = CellSpec(
        encoder="toy", weights="toy", method=name, method_version=1, settings={},
        task=materials.name, task_version=1, data="d", budget=materials.budget, seed=seed,
        stage=stage,
    )  # fmt: skip
    return run_cell(spec, CLASSES[name], materials, tuned=Tuned(lr=lr, scores={}), eval_batch=64)


def written(folder, materials, cells):
    """The cells {name: [(record, scores) by seed]} as a run leaves them."""
    test = materials.bundle.test
    items = Items(names=tuple(test.items), groups=tuple(map(str, test.groups)))
    with quick_disk(), Store.create(folder) as store:
        for name, runs in cells.items():
            control = "none: it is a control itself" if name in NAMES[:2] else "repeat"
            for record, scores in runs:
                facts = {"label": name, "family": name, "control": control, "group": "fine"}
                made = replace(record, task_family="halves", in_suite=True, **facts)
                store.write(made, scores, items)
        planned = [{"method": name} for name in cells if name not in NAMES[:2]]
        plain = as_plain(QUICK) | {"seeds": SEEDS, "contrasts": planned}
        store.history.add(Request(study=plain, labels=tuple(cells), tasks=(materials.name,)))
    return folder


def few(short, long):
    return pytest.mark.parametrize(
        "reps", [short, pytest.param(long, marks=pytest.mark.slow)], ids=["few", "many"]
    )


def bound(reps):
    return 0.05 + 2 * np.sqrt(0.05 * 0.95 / reps)


def alarms(folder):
    """Verdicts on planned contrasts and words on all others that claim a difference."""
    found = rows(folder, folder / "out")
    assert {row["kind"] for row in found} >= {"planned", "followup"}
    claimed = (*DECIDED, "higher", "lower")
    raw = [float(row["p_baseline"]) < 0.05 for row in found if row["kind"] == "planned"]
    return any(row["verdict"] in claimed for row in found), raw


@few(1, 20)
@pytest.mark.parametrize("reader", TRAINED)
def test_one_module_trained_under_eight_names_is_told_apart_by_chance_only(
    reader, reps, suite, tmp_path, record_property
):
    decided, raw = [], []
    for draw in range(reps):
        here = suite(draw, "true", reader)
        cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES}
        runs = [record.loss for runs in cells.values() for record, _ in runs]
        assert len(set(runs)) == len(runs)
        one, alone = alarms(written(tmp_path / str(draw), here, cells))
        decided.append(one)
        raw += alone
    record_property("suites with a verdict", float(np.mean(decided)))
    record_property("contrasts below 0.05", float(np.mean(raw)))
    # Below 20 suites a bound on a rate says little: none of the few may raise an alarm.
    assert np.mean(decided) <= (bound(reps) if reps >= 20 else 0)
    assert np.mean(raw) <= bound(len(raw))


def test_a_module_that_learns_more_is_told_apart_from_the_others(suite, tmp_path):
    # Or the test above would pass on cells that differ in nothing that is seen.
    here = suite(0, "true")
    cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES[:2]}
    cells["copy_0"] = [trained(here, "copy_0", seed, lr=LR / 1e4) for seed in range(SEEDS)]
    found = rows(written(tmp_path / "r", here, cells), tmp_path / "out")
    assert {row["verdict"] for row in found if row["kind"] == "planned"} == {"worse"}


@few(1, 20)
@pytest.mark.parametrize("reader", TRAINED)
def test_with_labels_dealt_anew_every_cell_lies_at_chance(
    reader, reps, suite, tmp_path, record_property
):
    inside, decided = [], []
    for draw in range(reps):
        here = suite(draw, "dealt anew", reader)
        cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES[:5]}
        folder = written(tmp_path / str(draw), here, cells)
        main = rows(folder, folder / "out", table="main")
        ends = [(float(row["ci_low"]), float(row["ci_high"])) for row in main]
        inside += [low <= 0.5 <= high for low, high in ends]
        decided.append(alarms(folder)[0])
    record_property("cells at chance", float(np.mean(inside)))
    record_property("suites with a verdict", float(np.mean(decided)))
    assert np.mean(inside) >= 1 - bound(len(inside))
    assert np.mean(decided) <= (bound(reps) if reps >= 20 else 0)


@few(1, 20)
def test_only_a_learning_rate_that_was_picked_on_test_gains_without_a_signal(
    reps, suite, record_property
):
    honest, leaking = [], []
    for draw in range(reps):
        here = suite(draw, "none")
        tuning = {rate: [trained(here, "penultimate", seed, lr=rate, stage="tune")[0].score
                         for seed in (1000, 1001, 1002)] for rate in RATES}  # fmt: skip
        test = np.array([[trained(here, "penultimate", seed, lr=rate)[0].score
                          for seed in range(SEEDS)] for rate in RATES])  # fmt: skip
        spread = test.std(axis=1, ddof=1).mean()
        chosen = RATES.index(choose_lr(tuning).lr)
        honest.append((test[chosen].mean() - test.mean()) / spread)
        # Run by run, as a paper does that reports the best of its runs.
        leaking.append((test.max(axis=0).mean() - test.mean()) / spread)
    record_property("gain with tuning seeds, in SDs of a run", float(np.mean(honest)))
    record_property("gain of the leak", float(np.mean(leaking)))
    assert np.mean(leaking) > 0.5
    assert abs(np.mean(honest)) < 0.25 if reps >= 20 else np.mean(honest) < np.mean(leaking)
