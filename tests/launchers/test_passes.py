"""A study whose budget trains several seeds in one pass: its layout, tuning, and resume."""

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_plugin import __file__ as plugin

from fusionbench.launchers.jobs import in_turn, jobs_of
from fusionbench.launchers.runner import Runner, seeds_of_pass
from fusionbench.launchers.signing import Failures
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import SMOKE

LAYERS = 8
"""Of the planted encoder."""
STUDY = replace(
    SMOKE,
    methods=("scalar_mix", "breaks", "refuses", "best_single"),
    tasks=("planted_layer",),
    seeds=3,
    budget=replace(SMOKE.budget, seeds_per_pass=2, lrs=(1e-3, 3e-3), tuning_seeds=2),
)


def work(folder: Path) -> dict[str, list[str]]:
    """Do what is missing; the events of each method."""
    plan = make_plan(resolve(STUDY, read_catalog([plugin])), Store.create(folder).finished())
    runner, heard = Runner(RunOptions(out=str(folder), device="cpu")), {}
    fail = Failures(runner.options)
    for event in in_turn(runner.run, jobs_of(plan), fail):
        if event.cell is not None:
            heard.setdefault(event.cell.spec.method, []).append(event.kind)
    return heard


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    return folder, work(folder)


def contents(folder: Path, part: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / part).iterdir()}


def test_every_cell_of_every_pass_is_accounted_for(finished):
    folder, heard = finished
    assert heard["scalar_mix"].count("done") == 3
    assert heard["breaks"].count("failed") == 3 and heard["refuses"].count("skipped") == 3
    done = [r for r in Store.open(folder).records() if r.status == "done"]
    assert {record.spec.seed for record in done} == {0, 1, 2}
    mixes = [record for record in done if record.spec.method == "scalar_mix"]
    assert all(len(record.tuning) == 2 and not record.notes for record in mixes)
    assert len(list((folder / "tuning").iterdir())) == (1 + LAYERS) * 2 * 2


def test_the_best_single_layer_is_chosen_from_passes_of_candidates(finished):
    folder, _ = finished
    found = [r for r in Store.open(folder).records() if r.spec.method == "best_single"]
    assert len(found) == 3
    for record in found:
        assert len(record.tuning) == LAYERS * 2 and f"of {LAYERS} layers" in record.notes[0]


def test_a_missing_cell_is_trained_in_its_whole_pass_and_written_alone(finished):
    folder, _ = finished
    cells, outcomes = contents(folder, "cells"), contents(folder, "outcomes")
    lost = next(
        r
        for r in Store.open(folder).records()
        if r.spec.method == "scalar_mix" and r.spec.seed == 1
    )
    (folder / "cells" / f"{lost.id}.json").unlink()
    assert work(folder)["scalar_mix"] == ["begun", "done"]
    found = Store.open(folder).find(lost.id)
    assert found.loss == lost.loss and found.outcomes == lost.outcomes
    assert contents(folder, "outcomes") == outcomes
    again = contents(folder, "cells")
    assert {n: c for n, c in again.items() if lost.id not in n} == {
        n: c for n, c in cells.items() if lost.id not in n
    }


def test_seeds_come_in_blocks_that_no_missing_cell_can_shift():
    assert seeds_of_pass(0, 4) == seeds_of_pass(3, 4) == range(0, 4)
    assert seeds_of_pass(9, 4) == range(8, 12)
