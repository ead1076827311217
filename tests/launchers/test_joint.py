"""One training scored on several tasks: the contract of tracks with `seed_scope: suite`."""

from dataclasses import replace

import numpy as np
import pytest

from fusionbench.harness.bundle import join
from fusionbench.launchers.jobs import EncodeJob, jobs_of
from fusionbench.launchers.runner import Runner
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study import plan as planning
from fusionbench.study.plan import TrainJob, make_plan, resolve
from fusionbench.study.study import SMOKE

TASKS = ("planted_layer", "planted_random")
"""They share the encoder and the answers."""
STUDY = replace(
    SMOKE, track="toy", methods=("scalar_mix",), tasks=TASKS, seeds=2,
    budget=replace(SMOKE.budget, lrs=(1e-3, 3e-3), tuning_seeds=1),
)  # fmt: skip


@pytest.fixture(autouse=True)
def toy_track(monkeypatch):
    monkeypatch.setattr(planning, "SEED_SCOPES", {"probe": "task", "toy": "suite"})


def plan_of(study=STUDY, finished=()):
    return make_plan(resolve(study, read_catalog()), finished)


@pytest.mark.parametrize("seeds_per_pass", [1, 2])
def test_one_training_of_a_seed_is_scored_on_each_task(tmp_path, seeds_per_pass):
    study = replace(STUDY, budget=replace(STUDY.budget, seeds_per_pass=seeds_per_pass))
    store = Store.create(tmp_path)
    runner = Runner(RunOptions(out=str(tmp_path), device="cpu"))
    jobs = jobs_of(plan_of(study))
    assert [type(job) for job in jobs] == [EncodeJob, EncodeJob, TrainJob]
    kinds = [event.kind for job in jobs for event in runner.run(job)]
    assert kinds.count("done") == 4 and "failed" not in kinds
    records = list(store.records())
    assert {(record.spec.task, record.spec.seed) for record in records} == {
        (task, seed) for task in TASKS for seed in (0, 1)
    }
    for seed in (0, 1):
        one, two = [record for record in records if record.spec.seed == seed]
        # One training: the same losses and learning rate, chosen by the mean over both tasks.
        assert one.loss == two.loss and one.tuning == two.tuning and one.lr == two.lr
        assert one.seed_scope == two.seed_scope == "suite" and one.items != two.items
        tried = [store.find(path.stem) for path in (tmp_path / "tuning").iterdir()]
        mean = np.mean([run.score for run in tried if run.spec.budget.lrs == (1e-3,)])
        assert len(tried) == 4 and one.tuning["0.001"] == pytest.approx([mean])


def test_a_missing_task_trains_its_seed_again_and_writes_that_cell_alone(tmp_path):
    store = Store.create(tmp_path)
    runner = Runner(RunOptions(out=str(tmp_path), device="cpu"))
    for job in jobs_of(plan_of()):
        list(runner.run(job))
    lost = next(record for record in store.records() if record.spec.task == TASKS[1])
    (tmp_path / "cells" / f"{lost.id}.json").unlink()
    (job,) = [
        job for job in jobs_of(plan_of(finished=store.finished())) if isinstance(job, TrainJob)
    ]
    assert [cell.spec.id for cell in job.cells] == [lost.id] and len(job.tasks) == 2
    assert [event.kind for event in runner.run(job)] == ["begun", "done"]
    found = store.find(lost.id)
    assert found.loss == lost.loss and found.outcomes == lost.outcomes


def test_the_other_tasks_of_a_training_are_part_of_the_identity():
    both = {cell.spec.id for cell in plan_of().cells}
    alone = {cell.spec.id for cell in plan_of(replace(STUDY, tasks=TASKS[:1])).cells}
    assert len(both) == 4 and not alone & both


def test_tasks_of_one_training_need_the_same_answers():
    from toy_cells import EVERY_TAP, materials

    bundle = materials(EVERY_TAP[:1]).bundle
    whole, parts = join([bundle, bundle])
    assert len(whole.train) == 2 * len(bundle.train) and whole.count == 2 * bundle.count
    assert (whole.test.rows[len(bundle.test) :] == bundle.test.rows + bundle.count).all()
    assert parts[0].questions == whole.questions
    with pytest.raises(ValueError, match="same answers"):
        join([bundle, replace(bundle, answers=("a", "b"))])
