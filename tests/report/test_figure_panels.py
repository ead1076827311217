"""Panels of the figures: differences with their intervals, and labels that stay readable."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from toy_records import put, spec
from toy_suite import labels, write_study

from fusionbench.records.store import Store
from fusionbench.report.build import collect
from fusionbench.report.contrasts import Comparison, ContrastRow, Decision, Measured, Scope
from fusionbench.report.figures.differences import MOST_ROWS, differences, draw_suite, draw_tasks
from fusionbench.report.figures.panels import spread, wrapped
from fusionbench.report.figures.style import house_style
from fusionbench.report.figures.write import drawings as drawings_of
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


# No two labels overlap and none is cut, with 40 methods and 14 tasks of long names.


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """What is written in each figure, and where, after the layout that `save` asks for."""
    store = Store.open(write_study(tmp_path_factory.mktemp("wide"), seeds=2))
    with house_style():
        found = {one.name: one for _, one in drawings_of(collect(store))}
        yield {name: boxes(drawing.figure) for name, drawing in found.items()}


def boxes(figure):
    """(text, box) of everything that is really written, and the figure's own box."""
    written = []
    draw = Text.draw

    def noting(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            written.append((self.get_text(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    Text.draw = noting
    try:
        canvas.draw()
    finally:
        Text.draw = draw
    return written, figure.bbox


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["heatmap", "differences", "differences-tasks", "cost", "scores", "profile", "ranks", "layers",
     "instruments", "learning"],
)  # fmt: skip
def test_labels_neither_overlap_nor_are_cut(drawings, name):
    written, page = drawings[name]
    ends = np.array([box.extents for _, box in written])
    slack = 0.5
    outside = (ends[:, :2] < page.min - slack).any(1) | (ends[:, 2:] > page.max + slack).any(1)
    assert [written[i][0] for i in np.flatnonzero(outside)] == []
    # Rotated names have boxes that overlap where the words do not.
    level = [i for i, (text, _) in enumerate(written) if not (name == "heatmap" and "_" in text)]
    low, high = ends[level, :2], ends[level, 2:]
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    clash = (shared > 1.0).all(axis=-1) & ~np.eye(len(level), dtype=bool)
    pairs = [(written[level[i]][0], written[level[j]][0]) for i, j in np.argwhere(clash) if i < j]
    assert pairs == []


@pytest.mark.thorough
def test_all_methods_are_named_where_all_are_shown(drawings):
    for name in ("heatmap", "scores"):
        shown = {text for text, _ in drawings[name][0]}
        assert len(set(labels()) - shown - {"penultimate"}) == 0, name


def test_this_test_sees_an_overlap_and_a_cut_label():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    for place, text in ((0.5, "first"), (0.52, "second")):
        figure.text(place, 0.5, text)
    with pytest.raises(AssertionError, match="first"):
        test_labels_neither_overlap_nor_are_cut({"it": boxes(figure)}, "it")
    figure = Figure(figsize=(2, 2))
    figure.text(0.95, 0.1, "far too long")
    with pytest.raises(AssertionError, match="far too long"):
        test_labels_neither_overlap_nor_are_cut({"it": boxes(figure)}, "it")


def test_labels_are_spread_no_further_than_they_must():
    wanted = np.array([0.5, 0.1, 0.52, 0.9, 0.5])
    found = spread(wanted, 0.05)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(found[order]) >= 0.05 - 1e-12).all()
    assert found[1] == pytest.approx(0.1) and found[3] == pytest.approx(0.9)
    # The three in the middle stand around their mean.
    assert found[[0, 2, 4]].mean() == pytest.approx(wanted[[0, 2, 4]].mean())
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.random(30) ** 3
        found = spread(wanted, 1 / 29)
        assert found.min() > -1e-9 and found.max() < 1 + 1e-9
        assert (np.diff(np.sort(found)) > 1 / 29 - 1e-9).all()
    with pytest.raises(ValueError, match="do not fit"):
        spread(np.zeros(30), 0.1)


def test_long_names_break_after_their_joints():
    assert wrapped("digits") == "digits"
    assert wrapped("scenes_orientation", 12) == "scenes_\norientation"
    assert wrapped("x" * 30, 12) == "\n".join(["x" * 12, "x" * 12, "x" * 6])
    assert wrapped("mema-no_feedback (= penultimate)", 17) == "mema-no_feedback\n(= penultimate)"
