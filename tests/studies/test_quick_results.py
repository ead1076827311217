"""The shipped quick study: its tables come from its records, and it shows what it must show."""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from fusionbench.records.pairs import Results
from fusionbench.report.build import write_report
from fusionbench.stats.verdicts import holm

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "results" / "quick"
pytestmark = pytest.mark.skipif(
    not (RESULTS / "study.json").exists(),
    reason="the shipped results travel with the checkout only",
)
SEED = 0
"""One run, so that its test examples are independent of each other."""


@pytest.fixture(scope="module")
def shipped() -> Results:
    """The shipped records, read once."""
    return Results.open(RESULTS)


@pytest.fixture(scope="module")
def right(shipped) -> dict[str, dict[str, tuple[int, int, float]]]:
    """{task: {method: (right answers, examples, chance)}} of one seed, suite tasks only."""
    found: dict[str, dict[str, tuple[int, int, float]]] = defaultdict(dict)
    for record in shipped.records:
        if record.in_suite and record.spec.seed == SEED and record.status == "done":
            hits = int(round(shipped.store.outcomes(record).sum()))
            found[record.spec.task][record.label] = (hits, record.examples, record.chance)
    return found


def p_value(cell: tuple[int, int, float]) -> float:
    hits, examples, chance = cell
    return float(binomtest(hits, examples, chance, alternative="greater").pvalue)


@pytest.fixture(scope="module")
def home(shipped, tmp_path_factory):
    """The report, written anew."""
    place = tmp_path_factory.mktemp("quick")
    write_report(shipped.store, place, finished=shipped.store.finished())
    return place


def files(home):
    """Those that are shipped: the note on what it was made from is this machine's own."""
    return {
        str(file.relative_to(home)): file.read_bytes()
        for file in sorted(home.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }


def test_the_shipped_report_comes_from_the_shipped_records(home):
    there, again = files(RESULTS / "report"), files(home)
    assert there.keys() == again.keys()
    assert any(name.startswith("tables/") for name in there)
    drawn = [name for name in there if name.endswith((".svg", ".png", ".html", "figures.json"))]
    versions = [json.loads(one["figures/figures.json"])["versions"] for one in (there, again)]
    # Other versions of matplotlib and FreeType draw other bytes: then the data stand for them.
    kept = set(there) if versions[0] == versions[1] else set(there) - set(drawn)
    assert {name for name in kept if name.startswith("figures/") and name.endswith(".csv")}
    assert [name for name in sorted(kept) if there[name] != again[name]] == []


def test_the_pages_say_what_the_shipped_records_say():
    spec = importlib.util.spec_from_file_location("answers", ROOT / "benchmarks/answers.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    for page in filter(Path.exists, pages.PAGES):
        text = page.read_text()
        assert "<!-- end of " in text and pages.written(text) == text, page
    assert pages.planned(RESULTS).count("\n") <= 13
    leaders = pages.leaders(RESULTS)
    assert leaders.count("\n") <= 13 and "`penultimate`" in leaders


def test_some_method_is_above_chance_on_at_least_8_tasks(right):
    # The best of many methods: Bonferroni over methods, then Holm over tasks.
    best = [min(1.0, len(row) * min(map(p_value, row.values()))) for row in right.values()]
    assert (np.array(holm(np.array(best))) < 0.05).sum() >= 8


def test_the_penultimate_layer_beats_chance_on_8_tasks_in_one_run(right):
    assert sum(p_value(row["penultimate"]) < 0.05 for row in right.values()) >= 8


@pytest.fixture(scope="module")
def averaged(shipped) -> dict[str, dict[str, np.ndarray]]:
    """{task: {method: mean over the runs of each example, less chance}}, suite tasks only."""
    scores = defaultdict(list)
    for record in shipped.records:
        if record.in_suite and record.label in ("penultimate", "best_single"):
            outcomes = shipped.store.outcomes(record)
            scores[record.spec.task, record.label].append(outcomes - record.chance)
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for (task, label), runs in scores.items():
        found[task][label] = np.mean(runs, axis=0)
    return found


def above_zero(examples: np.ndarray) -> bool:
    return bool(ttest_1samp(examples, 0, alternative="greater").pvalue < 0.05)


def test_the_penultimate_layer_beats_chance_on_8_tasks_over_its_runs(averaged):
    assert sum(above_zero(row["penultimate"]) for row in averaged.values()) >= 8


def test_the_best_single_layer_beats_the_penultimate_on_3_tasks(averaged):
    ahead = [row["best_single"] - row["penultimate"] for row in averaged.values()]
    assert sum(above_zero(row) for row in ahead) >= 3


def test_the_goals_of_the_instrument_hold(shipped):
    (table,) = [one for one in shipped.tables if one.condition.encoder == "nano"]
    suite = np.flatnonzero([task.in_suite for task in table.tasks])
    means = np.nanmean(table.values[:, suite], axis=(1, 2))
    layers = [row for row, name in enumerate(table.methods) if name.startswith("layer[")]
    assert max(means[row] for row in layers) >= 0.66
    assert sum(table.tasks[column].counts for column in suite) >= 9


def test_every_record_is_there(shipped):
    records = shipped.records
    labels = {record.label for record in records}
    tasks = {record.spec.task for record in records}
    assert len(records) == len(labels) * len(tasks) * 4
    codes = {tuple(sorted(record.provenance["code"].items())) for record in records}
    (code,) = map(dict, codes)
    assert len(code["commit"]) == 40 and code["dirty"] is False


def test_copies_of_a_layer_score_like_the_layer(shipped):
    scores = defaultdict(dict)
    for one in shipped.records:
        if one.in_suite and one.status == "done":
            scores[one.label][one.spec.task, one.spec.seed] = one.score
    for name in ("repeat", "repeat_like-hf_list", "repeat_like-mllama", "repeat_tokens"):
        gaps = [scores[name][key] - scores["penultimate"][key] for key in scores["penultimate"]]
        assert abs(np.mean(gaps)) < 0.003, name
