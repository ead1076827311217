"""Traces that methods leave layer by layer, and warnings about modules that do not learn."""

from collections import Counter
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.figures.data import FigureData
from fusionbench.report.figures.panels import grey_lines, wrapped
from fusionbench.report.figures.style import BLUE, GRID, SMALL, VERMILLION, Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IN_ENCODER_TRACES = {
    "gate_opening": "gate opening",
    "memory_norm": "norm of the memory",
    "feedback_norm": "norm of the feedback",
    "feedback_cosine": "cosine with the token",
}
"""Trace -> title of its column, for methods that write into the encoder (Mema and variants)."""
CURVE = ["method", "instrument", "layer", "median", "low", "high"]
"""Columns of a trace in CSV files."""
_KEYS = ["row", "method", "instrument", "position", "layer", "single"]
_MOST_FOR_RANGE = 5
_ENDS = (
    ("memory_norm", 0.0, "memory is 0"),
    ("feedback_norm", 0.0, "feedback is 0"),
    ("gate_opening", 0.0, "gate is closed"),
    ("gate_opening", 1.0, "gate is wide open"),
)
"""Trace, value and what it means when every block has that value in every run."""
_TOLERANCE = 1e-6
_LETTERS = 130
_READING = """\
A row per method, a column per trace, block by block. The line is the median over seeds of the mean
over tasks; the band is the range over up to five seeds, else the 10 to 90 % quantiles; thin lines
are single tasks. "Dead" (orange) warns of a parameter without any gradient or of a trace that is
constant at its bound in every block. Variants that remove a part by design show it as dead."""


def traces(data: FigureData) -> "pd.DataFrame":
    """All traces of finished runs: one row per method, trace, task, seed and layer.

    `layer` is the layer of a tap (the mean of a set of layers) or the number of the block;
    `single` says whether each value belongs to one layer. Of a trace with several taps or lengths
    the most frequent is kept.
    """
    import pandas as pd

    table = data.table
    found = []
    for row, label in enumerate(data.labels):
        done = [(task, run) for task in range(len(table.tasks)) for run in table.runs(row, task)
                if run.status == "done" and run.trace]  # fmt: skip
        for key in sorted({key for _, run in done for key in run.trace}):
            kinds = Counter((run.taps, len(run.trace[key])) for _, run in done if key in run.trace)
            taps, length = min(kinds, key=lambda kind: (-kinds[kind], kind))
            tapped = len(taps) == length and not data.in_encoder[row] and key == "layer_weights"
            layers = [np.mean(tap) for tap in taps] if tapped else range(1, length + 1)
            single = not tapped or all(len(tap) == 1 for tap in taps)
            found += [
                (row, label, key, single, task, run.spec.seed, range(length), layers, values)
                for task, run in done
                if len(values := run.trace.get(key, ())) == length > 0
            ]
    columns = ["row", "method", "instrument", "single", "task", "seed", "position", "layer"]
    frame = pd.DataFrame(found, columns=[*columns, "value"]).explode(["position", "layer", "value"])
    return frame.astype({"position": int, "layer": float, "value": float})


def trace_curves(found: "pd.DataFrame") -> "pd.DataFrame":
    """Median over seeds of the mean over tasks, and its band: one row per trace and layer."""
    if found.empty:
        return found.assign(low=0.0, median=0.0, high=0.0)
    by_seed = found.groupby([*_KEYS, "seed"], sort=False)["value"].mean()
    outer = 0.0 if found["seed"].nunique() <= _MOST_FOR_RANGE else 0.1
    shares = np.array([outer, 0.5, 1 - outer])
    quantiles = by_seed.groupby(_KEYS, sort=False).quantile(shares).unstack()
    return quantiles.set_axis(["low", "median", "high"], axis=1).reset_index()


def draw_traces(data: FigureData) -> Drawing | None:
    """A row per method, a column per trace; None where no method leaves these traces."""
    found = traces(data)
    found = found[found["instrument"].isin(IN_ENCODER_TRACES)]
    if found.empty:
        return None
    curves = trace_curves(found)
    warnings = {
        row: dead_parts(data, row, curves[curves["row"] == row])
        for row in sorted(set(curves["row"]))
    }
    rows = curves.assign(
        order=curves["instrument"].map(list(IN_ENCODER_TRACES).index),
        alarm=curves["row"].map({row: "; ".join(texts) for row, texts in warnings.items()}),
    ).sort_values(["row", "order", "position"])
    return Drawing(
        name="instruments",
        title="Traces of in-encoder methods",
        reading=_READING,
        figure=_figure(found, rows, warnings),
        rows=rows[[*CURVE, "alarm"]],
    )


def dead_parts(data: FigureData, row: int, curves: "pd.DataFrame") -> list[str]:
    """Parts of a method that do not learn, in words; `curves` are its traces."""
    done = [run for run in data.table.row(row) if run.status == "done"]
    unmoved = Counter(run.unmoved for run in done if run.unmoved)
    lines = [
        f"no gradient in {count} of {len(done)} cells: {', '.join(names)}"
        for names, count in sorted(unmoved.items())
    ]
    for key, end, text in _ENDS:
        ends = curves.loc[curves["instrument"] == key, ["low", "high"]]
        if len(ends) and ((ends - end).abs() < _TOLERANCE).all(axis=None):
            lines.append(f"{text} in every block")
    return lines


def _figure(
    found: "pd.DataFrame", curves: "pd.DataFrame", warnings: dict[int, list[str]]
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(9.2, 0.5 + 1.0 * len(warnings)), layout=ConstrainedLayoutEngine(hspace=0.15)
    )
    panels = figure.subplots(
        len(warnings), 1 + len(IN_ENCODER_TRACES), sharex="col", sharey="col", squeeze=False,
        width_ratios=[0.8, 1, 1, 1, 1],
    )  # fmt: skip
    for line, (row, texts) in zip(panels, warnings.items(), strict=True):
        here = curves[curves["row"] == row]
        _name(line[0], here["method"].iloc[0])
        for panel, key in zip(line[1:], IN_ENCODER_TRACES, strict=True):
            one, runs = here[here["instrument"] == key], found[found["row"] == row]
            draw_curve(panel, one, runs[runs["instrument"] == key])
        if texts:
            _warn(line[1], "Dead: " + "; ".join(texts))
    for panel, title in zip(panels[0][1:], IN_ENCODER_TRACES.values(), strict=True):
        panel.set_title(title, pad=14)
    for panel in panels[-1][1:]:
        panel.set_xlabel("after block")
    return figure


def _name(panel: "Axes", label: str) -> None:
    """Write a method's name into a column of its own, whose width no name changes."""
    panel.set_axis_off()
    note = panel.text(1, 0.5, wrapped(label, 17), ha="right", va="center",
                      transform=panel.transAxes)  # fmt: skip
    note.set_in_layout(False)


def draw_curve(panel: "Axes", curve: "pd.DataFrame", runs: "pd.DataFrame") -> None:
    """Draw one trace: a thin line per task, the band over seeds, and the median."""
    tasks = runs.groupby(["task", "position", "layer"])["value"].mean().reset_index()
    lines = (task[["layer", "value"]].to_numpy() for _, task in tasks.groupby("task"))
    grey_lines(panel, lines, width=0.4, alpha=0.4)
    panel.fill_between(curve["layer"], curve["low"], curve["high"], color=BLUE, alpha=0.25,
                       linewidth=0)  # fmt: skip
    panel.plot(curve["layer"], curve["median"], color=BLUE, linewidth=1.2, marker="o",
               markersize=2.5)  # fmt: skip
    set_layer_axis(panel)


def set_layer_axis(panel: "Axes") -> None:
    """Ticks at whole layers only."""
    from matplotlib.ticker import MaxNLocator

    panel.grid(visible=True, axis="y", color=GRID)
    panel.margins(x=0.04)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _warn(panel: "Axes", text: str) -> None:
    note = panel.annotate(
        shorten(text, _LETTERS, placeholder=" …"), (0, 1), (0, 6), xycoords="axes fraction",
        textcoords="offset points", color=VERMILLION, fontsize=SMALL, fontweight="bold",
        annotation_clip=False,
    )  # fmt: skip
    # It spans all columns; the layout would widen the first column for it.
    note.set_in_layout(False)
