"""Differences as they are drawn: both intervals from made rows, or paired runs where few ran."""

from dataclasses import replace

import numpy as np
import pytest
from toy_records import record, spec

from fusionbench.records.pairs import Results
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.report.figures import differences as forest
from fusionbench.report.figures.differences import differences
from fusionbench.report.figures.material import Material


def made(method, name, delta, **changes):
    """A row of tables/contrasts."""
    scope = "suite" if name == "suite" else "task"
    start = {
        "scope": scope, "name": name, "method": method, "baseline": "base", "control": "",
        "delta": f"{delta}", "low": f"{delta - 0.02}", "high": f"{delta + 0.02}",
        "testset_low": f"{delta - 0.01}", "testset_high": f"{delta + 0.01}", "p": "0.01",
        "p_adjusted": "0.2", "verdict": "undecided", "mde": "0.03", "n_seeds": "10",
        "n_examples": "256", "kind": "exploratory",
    }  # fmt: skip
    return start | changes


def material(tmp_path, seeds=3, contrasts=()):
    """Two methods on two tasks with other chance levels: 10 and 20 points apart."""
    cells = []
    for seed in range(seeds):
        wiggle = 0.01 * seed
        for task, chance, score in (("x", 0.5, 0.6), ("y", 0.0, 0.5)):
            cells.append(cell("base", task, seed, chance, score))
            cells.append(cell("new", task, seed, chance, score + (0.1 if task == "x" else 0.2)
                              + wiggle))  # fmt: skip
    (table,) = score_tables(cells)
    with Store.create(tmp_path / "s") as store:
        results = Results(store)
    return Material(table=table, results=results, baseline="base", contrasts=contrasts)


def cell(method, task, seed, chance, score):
    return replace(record(spec(method, task, seed), np.zeros(4), chance=chance), score=score)


def panels(drawing):
    return {panel.get_title().replace("\n", " "): panel for panel in drawing.figure.axes}


def test_runs_are_paired_by_seed_and_the_suite_counts_from_chance(tmp_path):
    found = {one.scope: one for one in differences(material(tmp_path)) if one.method == "new"}
    np.testing.assert_allclose(found["task", "x"].runs, [10, 11, 12])
    np.testing.assert_allclose(found["task", "y"].runs, [20, 21, 22])
    # x: 10 points of the 50 above chance are 20; y: 20 of 100; their mean is 20.
    np.testing.assert_allclose(found["suite", "suite"].runs, [20, 21.5, 23])
    assert found["suite", "suite"].value == pytest.approx(21.5)
    assert not any(one.tested or one.decided for one in found.values())


def test_with_fewer_than_four_seeds_points_are_drawn_and_no_test(tmp_path):
    drawing = forest.draw_suite(material(tmp_path))
    assert "no test is printed" in drawing.reading
    assert all(row["low"] == row["testset_low"] == row["p_adjusted"] == "" for row in drawing.data)
    lines = panels(drawing)["all tasks of the suite"].lines
    points = [list(line.get_xdata()) for line in lines if line.get_marker() == "o"]
    np.testing.assert_allclose(sum(points, []), [20, 21.5, 23])
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert any("no test" in label for label in labels) and "this test set" not in labels


def test_both_intervals_are_drawn_from_the_rows_in_points(tmp_path):
    rows = [made("new", "suite", 0.03, p_adjusted="0.01", verdict="better", kind="planned"),
            made("other", "suite", -0.01)]  # fmt: skip
    drawing = forest.draw_suite(material(tmp_path, seeds=10, contrasts=rows))
    panel = panels(drawing)["all tasks of the suite"]
    widths = {
        tuple(np.round(segment[:, 0], 6)): collection.get_linewidth()[0]
        for collection in panel.collections
        for segment in collection.get_segments()
    }
    assert widths[1.0, 5.0] < widths[2.0, 4.0] and widths[-3.0, 1.0] < widths[-2.0, 0.0]
    marks = {line.get_xdata()[0]: line for line in panel.lines if len(line.get_xdata()) == 1}
    decided, open_ = marks[3.0], marks[-1.0]
    assert decided.get_markerfacecolor() == decided.get_color()
    assert open_.get_markerfacecolor() == "white"
    assert decided.get_color() != open_.get_color()


def test_a_comparison_that_could_not_be_made_is_named(tmp_path):
    empty = dict.fromkeys(("delta", "low", "high", "testset_low", "testset_high", "p"), "")
    rows = [made("new", "suite", 0.03), made("gone", "suite", 0.0) | empty | {"n_seeds": "0"}]
    drawing = forest.draw_suite(material(tmp_path, seeds=10, contrasts=rows))
    texts = [text.get_text() for text in panels(drawing)["all tasks of the suite"].texts]
    assert texts == ["not run"]


def test_planned_contrasts_come_first_whatever_their_size(tmp_path):
    rows = [made("big", "suite", 0.2), made("small", "suite", 0.1), made("mine", "suite", -0.3,
            kind="planned")]  # fmt: skip
    drawing = forest.draw_suite(material(tmp_path, seeds=10, contrasts=rows))
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["mine", "big", "small"]


def test_a_row_with_too_few_seeds_shows_its_runs_beside_tested_ones(tmp_path):
    rows = [made("new", "x", 0.1, n_seeds="3", low="", high="", p="", p_adjusted=""),
            made("other", "x", 0.02)]  # fmt: skip
    drawing = forest.draw_tasks(material(tmp_path, contrasts=rows))
    assert "too few runs" in drawing.reading
    found = {row["method"]: row for row in drawing.data}
    assert found["new"]["runs"] == "10.0000 11.0000 12.0000" and found["new"]["low"] == ""
    assert found["other"]["low"] == "0.0000"


def test_without_the_baseline_nothing_is_compared(tmp_path):
    assert forest.draw_suite(replace(material(tmp_path), baseline="nobody")) is None
