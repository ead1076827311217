"""A plug-in task in one file with a metric that is no mean, and one whose answers are judged."""

import csv

import numpy as np
import pytest
from in_process import fusionbench
from toy_suite import section

from fusionbench.api.tasks import Example, ScoredItems, Scoring, judged
from fusionbench.records.store import Store

PLUGIN = '''
"""Is there something bright? As POPE asks: F1 beside accuracy; a judge reads the answers."""

import numpy as np
from fusionbench.api import Split, Task, TaskData, task


@task("bright", version=1, family="bright", group="fine")
class Bright(Task):
    chance = 0.6

    def load(self):
        rng = np.random.default_rng(0)
        answers = (rng.random(300) < 0.4).astype(np.int64)
        images = rng.integers(0, 120, (300, 16, 16, 3)).astype(np.uint8)
        images[answers == 1, 4:12, 4:12] += 60
        rows = {"train": range(0, 100), "val": range(100, 150), "test": range(150, 300)}
        splits = {
            name: Split(
                items=tuple(f"bright/{row}" for row in part), images=np.array(part),
                questions=("is there something bright?",) * len(part), answers=answers[part],
            )
            for name, part in rows.items()
        }
        return TaskData(images=images, answers=("no", "yes"), **splits)

    def metrics(self, outcomes, items):
        yes = np.array([answer == "yes" for answer in items.answers])
        hits = outcomes[yes].sum()
        return super().metrics(outcomes, items) | {
            "f1": 2 * hits / max(2 * hits + (1 - outcomes).sum(), 1)
        }


@task("spoken", version=1, family="bright", group="semantic")
class Spoken(Bright):
    free_text = True

    def judge(self, text, example):
        """Half a point for the other answer, so that every outcome shows who gave it."""
        assert text in ("yes", "no") and example.question.endswith("?")
        return 1.0 if text == example.answer else 0.5
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("metrics")
    (place / "bright.py").write_text(PLUGIN)
    fusionbench(
        "run", "--preset", "smoke", "--tasks", "bright,spoken", "--methods", "last", "--seeds", "4",
        "--quiet", "--plugin", place / "bright.py", "--out", place / "out",
    )  # fmt: skip
    return place / "out"


def test_a_record_has_each_named_metric(folder):
    for record in Store.open(folder).records():
        assert record.status == "done", record.reason
        assert record.scores["accuracy"] == record.score
        assert 0 <= record.scores["f1"] <= 1 and len(record.left_out["f1"]) == 32
        assert list(record.left_out) == ["f1"]


def test_the_main_table_shows_the_f1_with_an_interval(folder):
    with (folder / "report" / "tables" / "main.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "f1"]
    assert {(row["method"], row["task"]) for row in rows} == {
        (method, task) for method in ("last",) for task in ("bright", "spoken")
    }
    records = list(Store.open(folder).records())
    for row in rows:
        here = [r for r in records if (r.label, r.spec.task) == (row["method"], row["task"])]
        mean = np.mean([record.scores["f1"] for record in here])
        assert float(row["mean"]) == pytest.approx(mean, abs=1e-6)
        low, high = float(row["ci_low"]), float(row["ci_high"])
        assert low < high and low <= float(row["mean"]) <= high
    page = section(folder / "report", "main")
    assert "bright: f1" in page and "±" in page.split("bright: f1")[1]
    assert "bright: f1" in (folder / "report" / "report.md").read_text()


def test_judged_answers_are_the_outcomes(folder):
    store = Store.open(folder)
    for record in store.records():
        values = set(np.unique(store.outcomes(record)))
        assert values <= ({0.5, 1.0} if record.spec.task == "spoken" else {0.0, 1.0})


ITEMS = ScoredItems(names=("a", "b"), groups=("1", "2"), questions=("?", "?"),
                    answers=("Two dogs", "red"))  # fmt: skip


def test_the_default_judge_ignores_case_and_space_and_the_default_metric_is_the_mean():
    outcomes = judged(Scoring(), ["  two DOGS", "blue"], ITEMS)
    assert outcomes.tolist() == [1.0, 0.0] and outcomes.dtype == np.float32
    assert Scoring().metrics(outcomes, ITEMS) == {"accuracy": 0.5}


def test_an_outcome_of_a_judge_outside_0_to_1_is_refused():
    class Generous(Scoring):
        def judge(self, text: str, example: Example) -> float:
            return 2.0

    with pytest.raises(ValueError, match="from 0 to 1, got 2 to 2"):
        judged(Generous(), ["red", "red"], ITEMS)
