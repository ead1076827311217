"""The suite on its own ground truth: the right layer or method wins, through the whole machine.

Real cells under the quick budget. The long form has 20 seeds and every layer.
"""

from collections import defaultdict
from dataclasses import replace

import pytest

from fusionbench.launchers.jobs import jobs_of
from fusionbench.launchers.runner import Runner
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import QUICK

LAYERS = tuple(f"layer[index={index}]" for index in range(9))
JOINT = ("scalar_mix", "dense_connector-sci", "dense_connector-dci")
WRITING = ("mema", "mema-repaired")
READING = ("penultimate", "scalar_mix", "dense_connector-dci", "mema-readout", "mema-no_feedback")


def scores(folder, task, methods, seeds):
    """{seed: {label: score}} of a study run in this process."""
    Store.create(folder)
    study = replace(QUICK, tasks=(task,), methods=methods, seeds=seeds)
    runner = Runner(RunOptions(out=str(folder), device="cpu"))
    for job in jobs_of(make_plan(resolve(study, read_catalog()), ())):
        assert {event.kind for event in runner.run(job)} <= {"begun", "done", "stage"}
    found = defaultdict(dict)
    for record in Store.open(folder).records():
        found[record.spec.seed][record.label] = record.score
    assert len(found) == seeds
    return found


def wins(found, right, wrong):
    """Seeds in which each of the right ones beats each of the wrong ones."""
    return sum(min(row[r] for r in right) > max(row[w] for w in wrong) for row in found.values())


def test_the_layer_that_knows_wins(tmp_path):
    found = scores(tmp_path, "planted_layer", ("layer[index=2],layer[index=5]".split(",")), 2)
    assert wins(found, ["layer[index=5]"], ["layer[index=2]"]) == 2


@pytest.mark.thorough
def test_only_what_writes_back_sees_the_feedback_task(tmp_path):
    found = scores(tmp_path, "planted_feedback", ("mema-repaired", "scalar_mix"), 1)
    assert found[0]["mema-repaired"] > 0.9 > 0.65 > found[0]["scalar_mix"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        ("planted_layer", LAYERS[5:6], LAYERS[:5] + LAYERS[6:]),
        ("planted_pair", JOINT, LAYERS),
        ("planted_feedback", WRITING, READING),
    ],
)
def test_the_right_one_wins_in_19_of_20_seeds(tmp_path, task, right, wrong):
    assert wins(scores(tmp_path, task, (*right, *wrong), 20), right, wrong) >= 19


@pytest.mark.slow
def test_nobody_beats_chance_on_random_labels(tmp_path):
    found = scores(tmp_path, "planted_random", (*READING, *WRITING, "last"), 20)
    for label in found[0]:
        mean = sum(row[label] for row in found.values()) / len(found)
        # Four standard errors of a guesser on the 256 test images that all seeds share.
        assert abs(mean - 0.5) < 4 * 0.5 / 16, label
        # And for a single run of 20: the Bonferroni-corrected interval.
        assert all(abs(row[label] - 0.5) < 4.5 * 0.5 / 16 for row in found.values()), label
