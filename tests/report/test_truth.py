"""Outcomes with a known truth, through files: records by the store, verdicts from the CSV.

What holds of the arrays is shown in `tests/stats`; here the way from records to the table is part
of what is tested. The long forms (`-m slow`) have enough suites for narrow bounds.
"""

import numpy as np
import pytest
from nullsuites import SMALL_SUITE, draw, monte_carlo_se, null_suite  # noqa: E402
from scipy.special import nctdtr, ndtri, stdtrit
from toy_suite import numbers, rows, the, write_suite

DECIDED = ("better", "worse", "better by less than the margin", "worse by less than the margin")
NAMES = ("penultimate", "repeat", "first", "second", "third", "fourth")
"""Two references, one method of its own and three near-clones."""
MEMBERS = (0, 1, 2, 6, 7, 8)
TASKS = tuple(f"task_{i}" for i in range(len(SMALL_SUITE)))
CHANCE = (0.5, 0.5, 0.25, 0.25, 0.1, 0.1)


def few(short, long):
    return pytest.mark.parametrize(
        "reps", [short, pytest.param(long, marks=pytest.mark.slow)], ids=["few", "many"]
    )


def null_folder(place, rng, seeds, shared, scope=None, members=MEMBERS):
    made = null_suite(rng, seeds=seeds, shared_runs=shared, tasks=SMALL_SUITE)
    suite = {
        name: {task: y[member] for task, (y, _) in zip(TASKS, made, strict=True)}
        for name, member in zip(NAMES, members, strict=True)
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


@few(4, 500)
@pytest.mark.parametrize(("seeds", "shared"), [(5, True), (10, False)])
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
