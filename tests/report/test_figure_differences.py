"""Differences as they are drawn: both intervals of a test, or paired runs where few ran."""

from dataclasses import replace

import numpy as np
import pytest
from toy_records import put, spec

from fusionbench.records.store import Store
from fusionbench.report.build import collect
from fusionbench.report.contrasts import Comparison, ContrastRow, Decision, Measured, Scope
from fusionbench.report.figures.differences import MOST_ROWS, differences, draw_suite, draw_tasks
from fusionbench.report.figures.write import figure_data
from fusionbench.stats.estimate import Estimate
from fusionbench.study.contrasts import Contrast


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two methods on two tasks with different chance levels, at least 10 and 20 points apart."""
    folder = tmp_path_factory.mktemp("study")
    with Store.create(folder) as store:
        for seed in range(3):
            for task, chance, base in (("x", 0.5, 0.6), ("y", 0.0, 0.5)):
                put(store, spec("penultimate", task, seed), base, draw=0, chance=chance)
                put(store, spec("new", task, seed), 0.7 + seed / 40, draw=0, chance=chance)
    (found,) = figure_data(collect(Store.open(folder)))
    return found


def estimate(value, half):
    """With a 95 % interval of `value` - `half` to `value` + `half`."""
    start = Estimate(value=np.array(value), variance=np.array(1.0), nu=np.array(20.0),
                     replicates=10)  # fmt: skip
    return replace(start, variance=np.array((half / float(start.half_width())) ** 2))


def made(method, name, delta, *, kind="exploratory", seeds=10, p_adjusted=0.2):
    """A contrast with the baseline; without a test below four seeds."""
    measured = Measured(gap="nothing ran")
    if seeds:
        measured = Measured(
            estimate=estimate(delta, 0.02), runs=estimate(delta, 0.01), seeds=tuple(range(seeds)),
            by_seed=delta + 0.01 * np.arange(seeds),
        )  # fmt: skip
    level = "suite" if name == "suite" else "task"
    return ContrastRow(
        kind=kind, scope=Scope(level=level, name=name, tasks=(0,)), margin=0.01,
        contrast=Contrast(method=method, baseline="penultimate"),
        question=Comparison(references=(measured,)),
        answer=Decision(p_adjusted=p_adjusted) if seeds >= 4 else Decision(),
    )  # fmt: skip


def panels(drawing):
    return {panel.get_title().replace("\n", " "): panel for panel in drawing.figure.axes}


def test_runs_are_paired_by_seed_and_the_suite_counts_from_chance(data):
    found = differences(data)
    new = found[found["method"] == "new"].set_index("name")
    np.testing.assert_allclose(new.loc["x", "runs"], [10, 12.5, 15])
    np.testing.assert_allclose(new.loc["y", "runs"], [20, 22.5, 25])
    # x: 10 points of the 50 above chance are 20; y: 20 of 100; their mean is 20.
    np.testing.assert_allclose(new.loc["suite", "runs"], [20, 23.75, 27.5])
    assert new.loc["suite", "difference"] == pytest.approx(23.75)
    assert not found["tested"].any() and not found["decided"].any()


def test_with_fewer_than_four_seeds_points_are_drawn_and_no_test(data):
    drawing = draw_suite(data)
    assert "no test is printed" in drawing.reading.replace("\n", " ")
    assert drawing.rows["p_adjusted"].isna().all()
    lines = panels(drawing)["all tasks of the suite"].lines
    points = [list(line.get_xdata()) for line in lines if line.get_marker() == "o"]
    np.testing.assert_allclose(sum(points, []), [20, 23.75, 27.5])
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert any("no test" in label for label in labels) and "this test set" not in labels


def test_both_intervals_are_drawn_in_points(data):
    rows = [made("new", "suite", 0.03, p_adjusted=0.01, kind="planned"),
            made("other", "suite", -0.01)]  # fmt: skip
    drawing = draw_suite(replace(data, contrasts=rows))
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


def test_a_comparison_that_could_not_be_made_is_named(data):
    rows = [made("new", "suite", 0.03), made("gone", "suite", 0.0, seeds=0)]
    drawing = draw_suite(replace(data, contrasts=rows))
    texts = [text.get_text() for text in panels(drawing)["all tasks of the suite"].texts]
    assert texts == ["not compared"]


def test_at_most_twenty_rows_are_drawn_and_the_file_has_all(data):
    rows = [made(f"m{i}", "suite", i / 1000) for i in range(30)]
    rows += [made("mine", "suite", -0.3, kind="planned")]
    rows[0] = made("low", "suite", -0.5)
    drawing = draw_suite(replace(data, contrasts=rows))
    labels = [
        text.get_text() for text in panels(drawing)["all tasks of the suite"].get_yticklabels()
    ]
    assert len(labels) == MOST_ROWS and "mine" in labels and "m29" in labels and "m5" not in labels
    assert set(drawing.rows["method"]) == {row.contrast.method for row in rows}
    assert "at most 20 rows" in drawing.reading


def test_planned_contrasts_come_first_whatever_their_size(data):
    rows = [made("big", "suite", 0.2), made("small", "suite", 0.1),
            made("mine", "suite", -0.3, kind="planned")]  # fmt: skip
    drawing = draw_suite(replace(data, contrasts=rows))
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["mine", "big", "small"]


def test_a_row_with_too_few_seeds_shows_its_runs_next_to_tested_ones(data):
    rows = [made("new", "x", 0.1, seeds=3), made("other", "x", 0.02)]
    drawing = draw_tasks(replace(data, contrasts=rows))
    assert "too few runs" in drawing.reading
    found = drawing.rows.set_index("method")
    assert found.loc["new", "runs"] == "10.0000 11.0000 12.0000"
    assert np.isnan(found.loc["new", "p_adjusted"])
    assert found.loc["other", "low"] == pytest.approx(0.0)


def test_without_contrasts_nothing_is_drawn(data):
    assert draw_suite(replace(data, contrasts=())) is None
