"""Cells that were trained, their records and the report's CSV: alike, leaking, and without labels.

What is true is known because of how the cells were made: one module under several names, labels
that were dealt anew, a learning rate that was picked on test. The long forms (`-m slow`) have the
suites that a bound on a rate needs.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nullsuites import SMALL_SUITE, draw, monte_carlo_se, null_suite  # noqa: E402
from scipy.special import nctdtr, ndtri, stdtrit
from toy_cells import BUDGET, BrightHalf, PixelToyEncoder, run_cell
from toy_encoder import SHAPE
from toy_suite import numbers, quick_disk, rows, the, write_suite

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


@pytest.mark.thorough
@few(1, 20)
@pytest.mark.parametrize("reader", TRAINED)
def test_one_module_trained_under_eight_names_is_told_apart_by_chance_only(
    reader, reps, suite, tmp_path, record_property
):
    decided, raw = [], []
    for number in range(reps):
        here = suite(number, "true", reader)
        cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES}
        runs = [record.loss for runs in cells.values() for record, _ in runs]
        assert len(set(runs)) == len(runs)
        one, alone = alarms(written(tmp_path / str(number), here, cells))
        decided.append(one)
        raw += alone
    record_property("suites with a verdict", float(np.mean(decided)))
    record_property("contrasts below 0.05", float(np.mean(raw)))
    # Below 20 suites a bound on a rate says little: none of the few may raise an alarm.
    assert np.mean(decided) <= (bound(reps) if reps >= 20 else 0)
    assert np.mean(raw) <= bound(len(raw))


@pytest.mark.thorough
def test_a_module_that_learns_more_is_told_apart_from_the_others(suite, tmp_path):
    # Or the test above would pass on cells that differ in nothing that is seen.
    here = suite(0, "true")
    cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES[:2]}
    cells["copy_0"] = [trained(here, "copy_0", seed, lr=LR / 1e4) for seed in range(SEEDS)]
    found = rows(written(tmp_path / "r", here, cells), tmp_path / "out")
    assert {row["verdict"] for row in found if row["kind"] == "planned"} == {"worse"}


@pytest.mark.thorough
@few(1, 20)
@pytest.mark.parametrize("reader", TRAINED)
def test_with_labels_dealt_anew_every_cell_lies_at_chance(
    reader, reps, suite, tmp_path, record_property
):
    inside, decided = [], []
    for number in range(reps):
        here = suite(number, "dealt anew", reader)
        cells = {name: [trained(here, name, seed) for seed in range(SEEDS)] for name in NAMES[:5]}
        folder = written(tmp_path / str(number), here, cells)
        main = rows(folder, folder / "out", table="main")
        ends = [(float(row["ci_low"]), float(row["ci_high"])) for row in main]
        inside += [low <= 0.5 <= high for low, high in ends]
        decided.append(alarms(folder)[0])
    record_property("cells at chance", float(np.mean(inside)))
    record_property("suites with a verdict", float(np.mean(decided)))
    assert np.mean(inside) >= 1 - bound(len(inside))
    assert np.mean(decided) <= (bound(reps) if reps >= 20 else 0)


@pytest.mark.thorough
@few(1, 20)
def test_only_a_learning_rate_that_was_picked_on_test_gains_without_a_signal(
    reps, suite, record_property
):
    honest, leaking = [], []
    for number in range(reps):
        here = suite(number, "none")
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


# Outcomes with a known truth, through files: records by the store, verdicts from the CSV.
#
# What holds of the arrays is shown in `tests/stats`; here the way from records to the table is part
# of what is tested. The long forms (`-m slow`) have enough suites for narrow bounds.

TRUTH_NAMES = ("penultimate", "repeat", "first", "second", "third", "fourth")
"""Two references, one method of its own and three near-clones."""
MEMBERS = (0, 1, 2, 6, 7, 8)
TASKS = tuple(f"task_{i}" for i in range(len(SMALL_SUITE)))
CHANCE = (0.5, 0.5, 0.25, 0.25, 0.1, 0.1)


def null_folder(place, rng, seeds, shared, scope=None, members=MEMBERS):
    made = null_suite(rng, seeds=seeds, shared_runs=shared, tasks=SMALL_SUITE)
    suite = {
        name: {task: y[member] for task, (y, _) in zip(TASKS, made, strict=True)}
        for name, member in zip(TRUTH_NAMES, members, strict=True)
    }
    images = {task: names for task, (_, names) in zip(TASKS, made, strict=True)}
    kind = scope or ("suite" if shared else "task")
    return write_suite(place, suite, images=images, seed_scope=kind)


def false_alarms(found):
    """Which families say something in a suite where nothing is better than anything."""
    planned = [row for row in found if row["kind"] == "planned"]
    followups = [row for row in found if row["kind"] == "followup"]
    others = [row for row in found if row["kind"] == "exploratory"]
    assert len(planned) == 4 and len(followups) == 24 and others
    return {
        "planned": any(row["verdict"] in DECIDED for row in planned),
        "followup": any(row["verdict"] in DECIDED for row in followups),
        "exploratory": any(row["verdict"] in ("higher", "lower") for row in others),
        "against the baseline": np.mean([float(row["p_baseline"]) < 0.05 for row in planned]),
    }


@pytest.mark.thorough
@few(4, 500)
@pytest.mark.parametrize(("seeds", "shared"), [(4, False), (5, True), (10, False)])
def test_no_family_of_the_csv_raises_a_false_alarm_more_than_once_in_twenty(
    seeds, shared, reps, tmp_path, record_property
):
    rng, alarms = np.random.default_rng(100 + seeds), []
    for rep in range(reps):
        folder = null_folder(tmp_path / str(rep), rng, seeds, shared)
        alarms.append(false_alarms(rows(folder, folder / "out")))
    for family in alarms[0]:
        rate = float(np.mean([one[family] for one in alarms]))
        record_property(family, rate)
        assert rate <= 0.05 + 2 * monte_carlo_se(0.05, reps), family


@pytest.mark.slow
def test_a_record_that_misstates_its_seed_scope_raises_false_alarms(tmp_path, record_property):
    # The canary: runs shared by all tasks, stored as if every task had its own. No clones: these
    # raise false alarms together, and so more rarely.
    rng, alarms = np.random.default_rng(7), []
    for rep in range(300):
        folder = null_folder(tmp_path / str(rep), rng, 10, True, "task", members=range(6))
        found = rows(folder, folder / "out")
        alarms.append(min(float(r["p_baseline"]) for r in found if r["kind"] == "planned") < 0.0125)
    record_property("rate", float(np.mean(alarms)))
    assert np.mean(alarms) > 0.08


@pytest.mark.thorough
def test_one_module_under_eight_names_is_never_told_apart(tmp_path):
    rng = np.random.default_rng(3)
    table = {task: rng.random((6, 120)) < 0.6 for task in TASKS}
    names = ("penultimate", "repeat", *(f"name_{i}" for i in range(6)))
    folder = write_suite(tmp_path / "r", dict.fromkeys(names, table))
    found = rows(folder, tmp_path / "o")
    assert {row["delta"] for row in found} == {"0.000000"}
    assert {float(row["p"]) for row in found} == {1.0}
    assert {row["verdict"] for row in found} <= {"undecided", "equivalent", "open"}
    assert {float(r["testset_p"]) for r in found if r["kind"] == "planned"} == {1.0}
    main = rows(folder, tmp_path / "o", table="main")
    assert {row["tied"] for row in main} == {"true"}


def planted_folder(place, rng, effect, *, seeds=8, items=250):
    """`better` beats both references by `effect` of the suite's score on every task."""
    suite = {name: {} for name in ("penultimate", "repeat", "better", "other")}
    for task in TASKS:
        image = draw(rng, 1, items)
        for name, table in suite.items():
            share = 0.6 + (1 - 0.25) * effect * (name == "better")
            noise = 0.3 * draw(rng, 1, items) + draw(rng, seeds, items) + 0.1 * draw(rng, seeds, 1)
            level = ndtri(share) * np.sqrt(1 + 0.3**2 + 1 + 0.1**2)
            table[task] = image + noise < level
    return write_suite(place, suite)


def planned(folder, method="better"):
    return the(rows(folder, folder / "out"), kind="planned", method=method)


@pytest.mark.thorough
@few(3, 400)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_effect_is_found_as_often_as_its_mde_promises(sign, reps, tmp_path, record_property):
    rng = np.random.default_rng(11)
    pilot = [planned(planted_folder(tmp_path / f"p{i}", rng, 0.0)) for i in range(2)]
    mde, se, nu = np.mean([numbers(row, "mde", "se", "nu") for row in pilot], axis=0)
    effect = 1.5 * mde if reps > 100 else 2.5 * mde
    verdicts = [
        planned(planted_folder(tmp_path / str(rep), rng, sign * effect))["verdict"]
        for rep in range(reps)
    ]
    right = "better" if sign > 0 else "worse"
    rate = float(np.mean([one.startswith(right) for one in verdicts]))
    # Both references must be beaten, each at a chance of `alone`; their noise is half shared.
    alone = 1 - nctdtr(nu, effect / se, stdtrit(nu, 1 - 0.025 / 2))
    record_property("rate", rate)
    record_property("predicted", float(alone))
    assert 2 * alone - 1 - 0.05 <= rate + 2 * monte_carlo_se(0.5, reps) * (reps < 100)
    assert rate <= alone + 0.05 + 2 * monte_carlo_se(max(1 - alone, 0.01), reps)
    assert not any(one.startswith("worse" if sign > 0 else "better") for one in verdicts)


@pytest.mark.thorough
@few(4, 400)
def test_an_effect_as_large_as_the_margin_is_rarely_called_equivalent(
    reps, tmp_path, record_property
):
    rng, found = np.random.default_rng(12), []
    for rep in range(reps):
        folder = planted_folder(tmp_path / str(rep), rng, 0.01, seeds=10, items=800)
        found.append(planned(folder)["verdict"] == "equivalent")
    record_property("rate", float(np.mean(found)))
    assert np.mean(found) <= 0.05 + 2 * monte_carlo_se(0.05, reps)


def test_names_and_the_order_of_writing_change_no_number(tmp_path):
    rng = np.random.default_rng(13)
    suite = {
        name: {task: rng.random((5, 60)) < 0.5 + 0.05 * i for task in TASKS}
        for i, name in enumerate(("penultimate", "repeat", "alpha", "beta"))
    }
    renamed = {"alpha": "zulu", "beta": "an_earlier_name"}
    tasks = dict(zip(TASKS, [f"{chr(122 - i)}_task" for i in range(len(TASKS))], strict=True))
    other = {
        renamed.get(name, name): {tasks[t]: y for t, y in reversed(table.items())}
        for name, table in reversed(suite.items())
    }
    first = rows(write_suite(tmp_path / "a", suite), tmp_path / "x")
    second = rows(write_suite(tmp_path / "b", other), tmp_path / "y")
    same = ("delta", "low", "high", "testset_low", "testset_high", "p", "p_adjusted", "se", "nu",
            "verdict", "mde", "testset_p", "new_tasks_p_adjusted", "p_equivalent")  # fmt: skip
    for row in first:
        twin = the(
            second, kind=row["kind"], scope=row["scope"], name=tasks.get(row["name"], row["name"]),
            method=renamed.get(row["method"], row["method"]),
        )  # fmt: skip
        for column in same:
            if row[column] != twin[column]:
                # Sums over tasks run in another order: the last bits may differ, nothing else.
                assert float(row[column]) == pytest.approx(float(twin[column]), abs=2e-6, rel=1e-6)
