"""Figures by layer: traces of the methods, and learned weights next to scores of layers.

Learned weights are not importance: a layer may get weight because its norm is large, and a method
may do as well without it. So weights are drawn with the score of each layer alone and with what a
method loses without it, and their rank correlation.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.records.cell import CellRecord
from fusionbench.report.figures.panels import (
    FigureData,
    grey_lines,
    panel_grid,
    representatives,
    wrapped,
)
from fusionbench.report.figures.style import BLUE, GRID, ORANGE, SMALL, VERMILLION, Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusionbench.api.fusion import Tap

IN_ENCODER_TRACES = {
    "gate_opening": "gate opening",
    "memory_norm": "norm of the memory",
    "feedback_norm": "norm of the feedback",
    "feedback_cosine": "cosine with the token",
}
"""Trace -> title of its column, for methods that write into the encoder (Mema and variants)."""
CURVE = ["method", "instrument", "layer", "median", "low", "high"]
"""Columns of a trace in CSV files."""
_KEYS = ["row", "method", "instrument", "position", "layer", "axis"]
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
_TRACES_READING = """\
A row per method, a column per trace, block by block. The line is the median over seeds of the mean
over tasks; the band is the range over up to five seeds, else the 10 to 90 % quantiles; thin lines
are single tasks. "Dead" (orange) warns of a parameter without any gradient or of a trace that is
constant at its bound in every block. Variants that remove a part by design show it as dead."""


def traces(data: FigureData, only: Container[str] | None = None) -> "pd.DataFrame":
    """Traces of finished runs, all or `only` some: one row per method, trace, task, seed and layer.

    `layer` is the layer of a tap (the mean of a set of layers), or the number of the block or
    group; `axis` says which. Of a trace with several taps or lengths the most frequent is kept.
    """
    import pandas as pd

    table = data.table
    found = []
    for row, label in enumerate(data.labels):
        done = [(task, run) for task in range(len(table.tasks)) for run in table.runs(row, task)
                if run.status == "done" and run.trace]  # fmt: skip
        keys = {key for _, run in done for key in run.trace if only is None or key in only}
        for key in sorted(keys):
            kinds = Counter((run.taps, len(run.trace[key])) for _, run in done if key in run.trace)
            taps, length = min(kinds, key=lambda kind: (-kinds[kind], kind))
            tapped = len(taps) == length and not data.in_encoder[row] and key == "layer_weights"
            layers = [np.mean(tap) for tap in taps] if tapped else range(1, length + 1)
            axis = _axis(key, taps if tapped else None, in_encoder=data.in_encoder[row])
            found += [
                (row, label, key, axis, task, run.spec.seed, range(length), layers, values)
                for task, run in done
                if len(values := run.trace.get(key, ())) == length > 0 and run.taps == taps
            ]
    columns = ["row", "method", "instrument", "axis", "task", "seed", "position", "layer"]
    frame = pd.DataFrame(found, columns=[*columns, "value"]).explode(["position", "layer", "value"])
    return frame.astype({"position": int, "layer": float, "value": float})


def _axis(key: str, taps: "Sequence[Tap] | None", *, in_encoder: bool) -> str:
    """What the values of a trace belong to; `taps` where there is one value for each."""
    if in_encoder:
        return "layer" if key == "layer_weights" else "block"
    if taps is None:
        return "group"
    return "layer" if all(len(tap) == 1 for tap in taps) else "layer (sets at their middle)"


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
    found = traces(data, IN_ENCODER_TRACES)
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
        reading=_TRACES_READING,
        figure=_traces_figure(found, rows, warnings),
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


def _traces_figure(
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


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Score = tuple[str, str, str, str, str, float, float]

_COLUMNS = ["title", "source", "unit", "method", "task", "layer", "score"]
_FEWEST_LAYERS = 4
_MOST_PANELS = 28
_READING = """\
Blue: the weight or gate that a method learned for each layer, median over seeds of the mean over
tasks; the band is the range over up to five seeds, else the 10 to 90 % quantiles; thin lines are
single tasks. Orange: measured scores of layers, each layer alone or the loss without it. Learned
weights are not importance. rho is the rank correlation of weights with measured scores; no test is
made."""


def draw_layers(data: FigureData) -> Drawing | None:
    """A panel per set of layer scores, then one per trace; None where there is neither."""
    import pandas as pd

    scores = layer_scores(data)
    found = _learned(data)
    if scores.empty and found.empty:
        return None
    curves = trace_curves(found)
    names = pd.DataFrame({
        "method": scores["method"], "instrument": scores["source"] + ": " + scores["task"],
        "layer": scores["layer"], "median": scores["score"],
    })  # fmt: skip
    left = curves.groupby(["row", "instrument"]).ngroups - _MOST_PANELS
    note = f" {left} more curves are in the data of this figure only." if left > 0 else ""
    return Drawing(
        name="layers",
        title="Layer attribution",
        reading=_READING + note,
        figure=_figure(scores, found, curves),
        rows=pd.concat([curves[CURVE], names], ignore_index=True),
    )


def layer_scores(data: FigureData) -> "pd.DataFrame":
    """Measured scores of layers in percent or points, one row per source, task and layer.

    Sources are linear probes (`fusionbench probe-layers`), cells of single layers with at least
    three layers on a task, and pairs of cells of one method with and without a layer. A source
    needs two layers that all of its tasks have.
    """
    import pandas as pd

    rows = [*_probes(data), *_single_layers(data), *_leave_one_out(data)]
    titles = list(dict.fromkeys(title for title, *_ in rows))
    rows.sort(key=lambda row: (titles.index(row[0]), row[4], row[5]))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    kept = [title for title in titles if len(layer_means(frame[frame["title"] == title])) > 1]
    return frame[frame["title"].isin(kept)]


def layer_means(scores: "pd.DataFrame") -> "pd.Series[float]":
    """Mean over tasks by layer, for layers that all tasks have."""
    return scores.pivot(index="layer", columns="task", values="score").dropna().mean(axis=1)


def _probes(data: FigureData) -> Iterator["Score"]:
    known = {task.name for task in data.table.tasks}
    title = "each layer, linear probe"
    for probe in data.probes:
        for layer, score in enumerate(probe.layers if probe.task in known else ()):
            yield title, "the probe", "score, %", "", probe.task, float(layer), 100 * score


def _single_layers(data: FigureData) -> Iterator["Score"]:
    """Scores of methods with the one setting `index` that tap one hidden state."""
    table = data.table
    title = "each layer alone, same reader"
    for column, task in enumerate(table.tasks):
        found: dict[float, float] = {}
        for row in range(len(table.methods)):
            runs = [run for run in table.runs(row, column) if run.status == "done"]
            if runs and set(runs[0].spec.settings) == {"index"} and len(runs[0].taps) == 1:
                layer = float(np.mean(runs[0].taps[0]))
                found[layer] = 100 * float(np.nanmean(table.values[row, column]))
        for layer, score in found.items() if len(found) > 2 else ():
            yield title, "single layers", "score, %", "", task.name, layer, score


def _leave_one_out(data: FigureData) -> Iterator["Score"]:
    """Points that a method loses when it is trained without one of its layers."""
    table = data.table
    methods = range(len(table.methods))
    names = [table.row(row)[0].spec.method for row in methods]
    pairs = [(full, less) for full in methods for less in methods if names[full] == names[less]]
    for full, less in pairs:
        label = data.labels[full]
        for column, task in enumerate(table.tasks):
            layer = _left_out(table.runs(full, column)[:1], table.runs(less, column)[:1])
            lost = 100 * (table.values[full, column] - table.values[less, column])
            if layer is not None and not np.isnan(lost).all():
                yield (f"{label} without a layer", "leave-one-out", "points lost", label, task.name,
                       layer, float(np.nanmean(lost)))  # fmt: skip


def _left_out(full: list[CellRecord], less: list[CellRecord]) -> float | None:
    """The layer that is missing in `less`, if nothing else differs between the two cells."""
    if not full or not less:
        return None
    one, two = full[0].spec.settings, less[0].spec.settings
    missing = set(full[0].taps) - set(less[0].taps)
    if one.keys() != two.keys() or [key for key in one if one[key] != two[key]] != ["layers"]:
        return None
    if len(missing) != 1 or not set(less[0].taps) < set(full[0].taps):
        return None
    return float(np.mean(missing.pop()))


def rank_correlation(first: "pd.Series[float]", second: "pd.Series[float]") -> float:
    """Spearman's rho over layers in both; NaN below four layers, or if one is constant."""
    import pandas as pd

    both = pd.concat([first, second], axis=1, join="inner").rank()
    return float(both.corr(min_periods=_FEWEST_LAYERS).to_numpy()[0, 1])


def _learned(data: FigureData) -> "pd.DataFrame":
    """Weights and gates of all methods; traces of in-encoder methods for representatives only.

    Representatives come first, because only the first `_MOST_PANELS` traces are drawn.
    """
    found = traces(data)
    shown = found["row"].isin(representatives(data))
    extra = found["instrument"].isin(IN_ENCODER_TRACES)
    feedback = found["instrument"].str.startswith("feedback")
    found = found.assign(later=~shown)[~extra | (shown & ~feedback)]
    return found.sort_values(["later", "row"], kind="stable")


def _figure(scores: "pd.DataFrame", found: "pd.DataFrame", curves: "pd.DataFrame") -> "Figure":
    maps = [one for _, one in scores.groupby("title", sort=False)]
    drawn = list(curves.groupby(["row", "instrument"], sort=False))[:_MOST_PANELS]
    runs = dict(list(found.groupby(["row", "instrument"])))
    figure, panels = panel_grid(len(maps) + len(drawn), columns=4, size=(2.15, 1.65))
    for panel, one in zip(panels, maps, strict=False):
        _draw_scores(panel, one)
    for panel, (key, curve) in zip(panels[len(maps) :], drawn, strict=True):
        draw_curve(panel, curve, runs[key])
        panel.set_title(wrapped(curve["method"].iloc[0], 26))
        panel.set_xlabel(_axis_label(curve, maps))
        panel.set_ylabel(str(curve["instrument"].iloc[0]).replace("_", " "))
    return figure


def _axis_label(curve: "pd.DataFrame", maps: list["pd.DataFrame"]) -> str:
    """What the curve runs over; of layers and blocks, the rank correlation with layer scores."""
    axis = str(curve["axis"].iloc[0])
    if axis not in ("layer", "block"):
        return axis
    weights = curve.set_index("layer")["median"]
    lines = [axis]
    for scores in maps:
        method, source = scores[["method", "source"]].iloc[0]
        rho = rank_correlation(weights, layer_means(scores))
        if method in ("", curve["method"].iloc[0]) and not np.isnan(rho):
            lines.append(f"rho {rho:+.2f} with {source}")
    return "\n".join(lines)


def _draw_scores(panel: "Axes", scores: "pd.DataFrame") -> None:
    tasks = (task[["layer", "score"]].to_numpy() for _, task in scores.groupby("task"))
    grey_lines(panel, tasks, width=0.4, alpha=0.5)
    means = layer_means(scores)
    panel.plot(means.index, means, color=ORANGE, linewidth=1.4, marker="s", markersize=3)
    panel.set_title(wrapped(scores["title"].iloc[0], 26))
    panel.set_xlabel("layer")
    panel.set_ylabel(scores["unit"].iloc[0])
    set_layer_axis(panel)
