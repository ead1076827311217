"""The answer names planted truths, names no winner where there is none, and says nothing else."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from toy_suite import CONTROLS, correlated, quick_disk, read, rows, write_suite

from fusionbench.cli import summary
from fusionbench.cli.summary import SHOWN, shortened
from fusionbench.launchers.sweep import SweepResult
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, collect, write_report

TASKS = ("digits", "textile", "scenes")
NAMES = ("penultimate", "repeat", "better", "other")


def study(folder, rng, shares, *, seeds=6, contrasts=None, **facts):
    """A folder whose methods are right with these shares in the long run, on every task."""
    tables = {task: correlated(rng, shares, seeds=seeds, items=150) for task in TASKS}
    suite = {name: {task: tables[task][name] for task in TASKS} for name in shares}
    planned = [{"method": name} for name in shares if name not in CONTROLS]
    return write_suite(
        folder, suite, study={"contrasts": planned if contrasts is None else contrasts}, **facts
    )


def sentences(folder):
    return [row["sentence"] for row in rows(folder, folder / "out", table="answer")]


def many(short, long):
    return pytest.mark.parametrize(
        "reps", [short, pytest.param(long, marks=pytest.mark.slow)], ids=["few", "many"]
    )


def test_the_terminal_shows_this_run_and_counts_the_other_cells_of_its_folder(
    tmp_path, without_figures
):
    rng = np.random.default_rng(5)
    folder = study(tmp_path / "r", rng, {"penultimate": 0.5, "better": 0.8, "other": 0.5})
    store = Store.open(folder)
    records = list(store.records())
    mine = {one.id for one in records if one.spec.task == "digits" and one.label != "other"}
    run = SimpleNamespace(study=SimpleNamespace(baseline="penultimate"), methods=(), unavailable=())
    result = SweepResult(finished=len(mine))

    def shown(cells):
        stream = io.StringIO()
        summary.write(folder, run, result, stream, cells=cells)
        return stream.getvalue()

    said = shown(mine)
    assert "| better" in said and "other" not in said.split("more cells")[0].split("###")[1]
    assert "suite (1 task)" in said and "suite (3 tasks)" not in said
    others = len(records) - len(mine)
    assert f"{others} more cells of other runs are in the folder's report" in said
    # A run that is all of its folder shows the report's own tables.
    whole = shown({one.id for one in records})
    assert "more cells" not in whole and "suite (3 tasks)" in whole
    assert (folder / "report" / "tables" / "answer.md").read_text().replace("`", "") in whole


@many(3, 40)
def test_a_planted_winner_is_named_and_nobody_else(reps, tmp_path, record_property):
    rng, right = np.random.default_rng(5), 0
    for rep in range(reps):
        shares = dict.fromkeys(NAMES, 0.6) | {"better": 0.72}
        first = sentences(study(tmp_path / str(rep), rng, shares))[0]
        right += "better (+" in first and "other" not in first and "1 of 2 planned" in first
    record_property("named", right / reps)
    assert right >= 0.95 * reps


@many(3, 40)
def test_a_study_without_a_winner_names_none(reps, tmp_path, record_property):
    rng, right = np.random.default_rng(6), 0
    for rep in range(reps):
        said = sentences(study(tmp_path / str(rep), rng, dict.fromkeys(NAMES, 0.6)))
        none = "none of 2 planned methods is shown to be better than penultimate" in said[0]
        right += none and not any(line.startswith(("Worse", "Added")) for line in said)
    record_property("silent", right / reps)
    assert right >= 0.95 * reps


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Sentences of a study with a winner, a loser, a clone and a contrast of its own."""
    shares = {"penultimate": 0.6, "repeat": 0.6, "good": 0.75, "bad": 0.45, "clone": 0.6}
    shares |= {"layer[index=2]": 0.7}
    contrasts = [
        {"method": "good"}, {"method": "bad"}, {"method": "clone"},
        {"method": "good", "baseline": "bad", "control": "bad"},
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("said") / "r"

    def size(method):
        return {"fusion": 50 if method == "good" else 10, "projector": 20, "reader": 30}

    study(folder, np.random.default_rng(1), shares, contrasts=contrasts, parameters=size)
    return folder, sentences(folder)


def one(lines, start):
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_each_sentence_follows_its_verdict(said):
    folder, lines = said
    table = read(folder / "out", "answer")
    assert [int(row["number"]) for row in table] == list(range(1, len(lines) + 1))
    contrasts = rows(folder, folder / "c")
    verdict = {
        (row["method"], row["baseline"]): row["verdict"]
        for row in contrasts
        if row["kind"] == "planned"
    }
    assert verdict["good", "penultimate"] == "better" and verdict["bad", "penultimate"] == "worse"
    assert lines[0].startswith("On the 3 tasks of the suite good (+")
    assert "1 of 3 planned methods" in lines[0] and "bad" not in lines[0]
    assert one(lines, "Worse than penultimate: ").startswith("Worse than penultimate: bad (-")
    assert "good is better than bad (+" in one(lines, "Other planned comparisons: ")
    assert "good 40 parameters, time not measured" in one(lines, "Added to the whole model")
    undecided = [line for line in lines if line.startswith("Undecided")]
    assert bool(undecided) == (verdict["clone", "penultimate"] == "undecided")
    assert all("clone against penultimate" in line for line in undecided)
    certain = one(lines, "How sure: ")
    assert "6 runs of each method, 450 test examples, 4 planned contrasts" in certain


def test_what_one_layer_gives_is_a_mean_and_says_so(said):
    line = one(said[1], "Of the methods that read one layer, ")
    assert "layer[index=2] has the highest mean" in line and line.endswith("(means, no test).")
    # `good` alone is above it.
    assert "1 of 4 others have a higher mean" in line
    best = next(
        row for row in rows(said[0], said[0] / "s", table="summary")
        if row["method"] == "layer[index=2]" and row["aggregate"] == "suite"
    )  # fmt: skip
    assert f"{100 * float(best['score']):.1f} % of the way" in line


def test_the_best_is_named_with_those_that_cannot_be_told_apart(said):
    line = said[1][-1]
    assert "good has the highest mean" in line or "highest mean is that of good" in line


def test_page_markdown_and_terminal_say_the_same(said, tmp_path):
    folder, lines = said
    with quick_disk():
        write_report(folder, tmp_path, ReportOptions(formats=("md", "html", "csv")))
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    answer = (tmp_path / "tables" / "answer.md").read_text()
    assert text.index("## Answer") < text.index("## Leaderboard")
    box = page.split('<section id="answer"')[1].split("</section>")[0]
    for line in lines:
        assert f"- {line}" in answer.replace("`", "")
        assert line in re.sub(r"<[^>]+>", "", box).replace("&lt;", "<").replace("&gt;", ">")
    assert answer in text


def test_the_leaderboard_is_sorted_and_marks_baseline_and_controls(said):
    folder, _ = said
    report = collect(Store.open(folder))
    (analysis,) = report.analyses
    table = [row for row in rows(folder, folder / "b", table="summary")
             if row["aggregate"] == "suite"]  # fmt: skip
    scores = [float(row["score"]) for row in table]
    assert scores == sorted(scores, reverse=True) and table[0]["method"] == "good"
    roles = {row["method"]: row["role"] for row in table}
    assert roles["penultimate"] == "baseline" and roles["repeat"] == "control"
    assert roles["good"] == "" and len(roles) == len(analysis.labels)
    good = table[0]
    assert good["added"] == "40" and good["verdict"] == "better"


def test_with_few_runs_nobody_wins(tmp_path):
    shares = dict.fromkeys(NAMES, 0.6) | {"better": 0.9}
    lines = sentences(study(tmp_path / "r", np.random.default_rng(2), shares, seeds=3))
    assert lines[0] == (
        "No method is shown to be better than penultimate on the 3 tasks of the suite: a test "
        "needs 4 runs of each method."
    )
    assert not any("better (+" in line for line in lines)


def test_without_the_baseline_nothing_is_compared(tmp_path):
    shares = {"better": 0.9, "other": 0.5}
    lines = sentences(study(tmp_path / "r", np.random.default_rng(2), shares))
    assert lines[0].startswith("The baseline penultimate was not run")


def test_the_terminal_shows_the_first_ten_and_the_users_own():
    head = ["### nano", "", "| method | suite |", "|---|---|"]
    body = [f"| m{i} | {i} |" for i in range(20)] + ["| penultimate (baseline) | 3 |"]
    text = [*head, *body, "", "a note"]
    shown = list(shortened(text, {"penultimate", "m17"}))
    assert shown[: 4 + SHOWN] == text[: 4 + SHOWN]
    assert shown[4 + SHOWN :] == [
        "| m17 | 17 |", "| penultimate (baseline) | 3 |", "9 more: --full", "", "a note",
    ]  # fmt: skip
    assert list(shortened(text, None)) == text
