"""No two labels overlap and none is cut, with 40 methods and 14 tasks of long names."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from wide_study import labels, write_study

from fusionbench.records.store import Store
from fusionbench.report.build import collect
from fusionbench.report.figures.panels import spread, wrapped
from fusionbench.report.figures.style import house_style
from fusionbench.report.figures.write import drawings as drawings_of


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
