"""Which layers a method leans on, beside what the layers are worth on their own.

Learned weights are not importance: a layer may get weight because its norm is large, and a method
may do as well without it. So the weights stand beside scores of single layers (probes, or `layer`
cells of the study) and of the method without a layer, with their rank correlation.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.figures.material import Material, representatives
from fusionbench.report.figures.style import (
    BLUE,
    GRID,
    ORANGE,
    SMALL,
    VERMILLION,
    Drawing,
    thin,
    wrapped,
)
from fusionbench.report.tables import Row

# What single layers are worth, measured: on their own, and by their absence.
#
# On their own: `DIR/probes/*.json` (`fusionbench probe-layers`, linear probes of every hidden state),
# and the study's cells of single layers. By their absence: two cells of one method that differ in
# the setting of its layers, where one reads all that the other reads but one.


Scores = Mapping[float, float]
"""Layer -> score."""


@dataclass(frozen=True, kw_only=True)
class Map:
    """A number for each layer: the mean over tasks, and each task."""

    title: str
    short: str
    """How a correlation names it."""
    unit: str
    tasks: Mapping[str, Scores]
    method: str = ""
    """The method it belongs to; empty if it belongs to the encoder."""

    @property
    def means(self) -> Scores:
        """Over the tasks, for layers that all of them know."""
        common = set.intersection(*(set(values) for values in self.tasks.values()))
        return {
            layer: float(np.mean([values[layer] for values in self.tasks.values()]))
            for layer in sorted(common)
        }

    def rows(self) -> list[Row]:
        """The map for programs, task by task."""
        return [
            {"method": self.method, "instrument": f"{self.short}: {task}", "layer": f"{layer:g}",
             "median": f"{score:.6f}", "low": "", "high": ""}
            for task, values in self.tasks.items()
            for layer, score in sorted(values.items())
        ]  # fmt: skip


def probe_map(material: Material) -> Map | None:
    """From `fusionbench probe-layers`; None where it was not run for a task of the table."""
    known = {task.name for task in material.table.tasks}
    tasks = {
        one.task: {float(layer): 100 * score for layer, score in enumerate(one.layers)}
        for one in material.probes
        if one.task in known
    }
    return _map_single("each layer, linear probe", "the probe", tasks)


def single_map(material: Material) -> Map | None:
    """From the study's own cells of single layers; None below three layers.

    A single layer is a method whose one setting is `index` and that taps one hidden state.
    """
    tasks: dict[str, dict[float, float]] = {}
    table = material.table
    for row in range(len(table.methods)):
        for column, task in enumerate(table.tasks):
            runs = [run for run in table.runs(row, column) if run.status == "done"]
            if runs and set(runs[0].spec.settings) == {"index"} and len(runs[0].taps) == 1:
                scores = 100 * table.values[row, column]
                layer = float(np.mean(runs[0].taps[0]))
                tasks.setdefault(task.name, {})[layer] = float(np.nanmean(scores))
    complete = {task: values for task, values in tasks.items() if len(values) > 2}
    return _map_single("each layer alone, same reader", "single layers", complete)


def without_maps(material: Material) -> Iterator[Map]:
    """What each method loses without a layer, in points; it was trained anew without it."""
    table = material.table
    for row in range(len(table.methods)):
        tasks: dict[str, dict[float, float]] = {}
        for other in range(len(table.methods)):
            for task, layer, lost in _lost(material, row, other):
                tasks.setdefault(task, {})[layer] = lost
        label = material.labels[row]
        found = _map_single(f"{label} without a layer", "leave-one-out", tasks, method=label)
        if found is not None:
            yield found


def _lost(material: Material, row: int, other: int) -> Iterator[tuple[str, float, float]]:
    """(task, layer, points) wherever `other` is the same method without one layer."""
    table = material.table
    names = {table.row(one)[0].spec.method for one in (row, other)}
    for column, task in enumerate(table.tasks if len(names) == 1 else ()):
        full, less = table.runs(row, column)[:1], table.runs(other, column)[:1]
        if not full or not less or not _same_but_layers(full[0], less[0]):
            continue
        missing = set(full[0].taps) - set(less[0].taps)
        if set(less[0].taps) < set(full[0].taps) and len(missing) == 1:
            apart = 100 * (table.values[row, column] - table.values[other, column])
            if not np.isnan(apart).all():
                yield task.name, float(np.mean(missing.pop())), float(np.nanmean(apart))


def _same_but_layers(first: CellRecord, second: CellRecord) -> bool:
    one, two = first.spec.settings, second.spec.settings
    if first.spec.method != second.spec.method or one.keys() != two.keys():
        return False
    return [key for key in one if one[key] != two[key]] == ["layers"]


def _map_single(
    title: str, short: str, tasks: Mapping[str, Scores], *, method: str = ""
) -> Map | None:
    if not tasks:
        return None
    unit = "points lost" if method else "score, %"
    found = Map(title=title, short=short, unit=unit, tasks=tasks, method=method)
    return found if len(found.means) > 1 else None


# What the methods' instruments say layer by layer, over seeds and tasks.


_FEW_SEEDS = 6

Placed = tuple[CellRecord, tuple[int, int]]
"""A run and its task and seed in the table."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One instrument of one method: its median over seeds, a band, and a line for each task."""

    method: str
    key: str
    layers: Float[np.ndarray, " layer"]
    """Where each value belongs: the layer of a tap (the mean of a set), or the block."""
    single: bool
    """Whether each value belongs to one layer alone."""
    median: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]
    tasks: Float[np.ndarray, "task layer"]

    def rows(self) -> list[Row]:
        """The curve for programs."""
        return [
            {"method": self.method, "instrument": self.key, "layer": f"{layer:g}",
             "median": f"{self.median[i]:.6f}", "low": f"{self.low[i]:.6f}",
             "high": f"{self.high[i]:.6f}"}
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip


def traces(material: Material, row: int) -> dict[str, Trace]:
    """The instruments of one method by name; runs with other taps or another length do not count.

    The median and the band are over seeds, each seed the mean over tasks: the range for up to
    five seeds, the 10 to 90 % quantiles for more.
    """
    done = _done(material.table, row)
    keys = sorted({key for run, _ in done for key in run.trace})
    found = {key: _trace(material, row, key, done) for key in keys}
    return {key: trace for key, trace in found.items() if trace is not None}


def _done(table: ScoreTable, row: int) -> list[Placed]:
    """The finished runs of a method that left a trace."""
    seeds = {seed: place for place, seed in enumerate(table.seeds)}
    return [
        (run, (task, seeds[run.spec.seed]))
        for task in range(len(table.tasks))
        for run in table.runs(row, task)
        if run.status == "done" and run.trace
    ]


def _trace(material: Material, row: int, key: str, done: Sequence[Placed]) -> Trace | None:
    kinds = Counter((run.taps, len(run.trace[key])) for run, _ in done if run.trace.get(key))
    if not kinds:
        return None
    taps, length = min(kinds, key=lambda kind: (-kinds[kind], kind))
    values = _values(material.table, done, key, length)
    tapped = len(taps) == length and not material.in_encoder[row] and key == "layer_weights"
    by_seed = _mean(values, axis=0)
    by_seed = by_seed[~np.isnan(by_seed).any(axis=1)]
    if not len(by_seed):
        return None
    outer = (0.0, 1.0) if len(by_seed) < _FEW_SEEDS else (0.1, 0.9)
    low, median, high = np.quantile(by_seed, (outer[0], 0.5, outer[1]), axis=0)
    return Trace(
        method=material.labels[row],
        key=key,
        layers=np.array([np.mean(tap) for tap in taps] if tapped else range(1, length + 1)),
        single=not tapped or all(len(tap) == 1 for tap in taps),
        median=median,
        low=low,
        high=high,
        tasks=_mean(values, axis=1),
    )


def _values(
    table: ScoreTable, done: Sequence[Placed], key: str, length: int
) -> Float[np.ndarray, "task seed layer"]:
    values = np.full((len(table.tasks), len(table.seeds), length), np.nan)
    for run, place in done:
        trace = run.trace.get(key, [])
        if len(trace) == length:
            values[place] = trace
    return values


def _mean(
    values: Float[np.ndarray, "task seed layer"], axis: int
) -> Float[np.ndarray, "other layer"]:
    """The mean over what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# The instruments of methods that write into the encoder, and an alarm for modules that are dead.
#
# Drawn for whatever leaves these traces, as Mema and its variants do.


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = {
    "gate_opening": "gate opening",
    "memory_norm": "norm of the memory",
    "feedback_norm": "size of the feedback",
    "feedback_cosine": "cosine with the token",
}
"""Trace -> what it is."""
_SILENT = 1e-6
_LETTERS = 130
_READING_instruments = """\
A row per method, a column per instrument, block by block: the line is the median over seeds of the
mean over tasks, the band their spread (range for up to five seeds, else 10 to 90 %), thin lines
single tasks. "Dead" in orange is an alarm: a parameter that no gradient ever reached, or an
instrument that stays at its end in every block. Variants that leave a part out by design are
silent there and should be."""


def draw_instruments(material: Material) -> Drawing | None:
    """None where no method leaves these traces."""
    found = {row: _instruments(material, row) for row in range(len(material.table.methods))}
    found = {row: instruments for row, instruments in found.items() if instruments}
    if not found:
        return None
    alarms = {row: alarm(material, row, instruments) for row, instruments in found.items()}
    return Drawing(
        name="instruments",
        title="Instruments of in-encoder methods",
        reading=_READING_instruments,
        figure=_figure_instruments(material, found, alarms),
        data=_rows(found, alarms),
    )


def _instruments(material: Material, row: int) -> dict[str, Trace]:
    found = traces(material, row)
    return {key: found[key] for key in COLUMNS if key in found} if COLUMNS.keys() & found else {}


def alarm(material: Material, row: int, instruments: dict[str, Trace]) -> list[str]:
    """What is dead in a method, in words; empty if nothing is."""
    done = [run for run in material.table.row(row) if run.status == "done"]
    unmoved = Counter(run.unmoved for run in done if run.unmoved)
    lines = [
        f"no gradient in {count} of {len(done)} cells: {', '.join(names)}"
        for names, count in sorted(unmoved.items())
    ]
    ends = {"memory_norm": (0.0, "memory is 0"), "feedback_norm": (0.0, "feedback is 0")}
    for key, (end, text) in ends.items():
        if key in instruments and _stays(instruments[key], end):
            lines.append(f"{text} in every block")
    openings = instruments.get("gate_opening")
    if openings is not None and _stays(openings, 0.0):
        lines.append("gate is closed in every block")
    if openings is not None and _stays(openings, 1.0):
        lines.append("gate is wide open in every block")
    return lines


def _stays(trace: Trace, end: float) -> bool:
    return bool((np.abs(trace.low - end) < _SILENT).all() and
                (np.abs(trace.high - end) < _SILENT).all())  # fmt: skip


def _figure_instruments(
    material: Material, found: dict[int, dict[str, Trace]], alarms: dict[int, list[str]]
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    roomy = ConstrainedLayoutEngine(hspace=0.15)
    figure = Figure(figsize=(9.2, 0.5 + 1.0 * len(found)), layout=roomy)
    panels = figure.subplots(
        len(found), 1 + len(COLUMNS), sharex="col", sharey="col", squeeze=False,
        width_ratios=[0.8, 1, 1, 1, 1],
    )  # fmt: skip
    for line, (row, instruments) in zip(panels, found.items(), strict=True):
        _name(line[0], material.labels[row])
        for panel, (key, title) in zip(line[1:], COLUMNS.items(), strict=True):
            if key in instruments:
                curve(panel, instruments[key])
            if row == next(iter(found)):
                panel.set_title(title, pad=14)
        _warn(line[1], alarms[row])
    for panel in panels[-1][1:]:
        panel.set_xlabel("after block")
    return figure


def _name(panel: "Axes", label: str) -> None:
    """The method's name in a column of its own, whose width no name changes."""
    panel.set_axis_off()
    note = panel.text(1, 0.5, wrapped(label, 17), ha="right", va="center",
                      transform=panel.transAxes)  # fmt: skip
    note.set_in_layout(False)


def curve(panel: "Axes", trace: Trace) -> None:
    """A line per task, the band over seeds, and the median."""
    thin(panel, ((trace.layers, values) for values in trace.tasks), width=0.4, alpha=0.4)
    panel.fill_between(trace.layers, trace.low, trace.high, color=BLUE, alpha=0.25, linewidth=0)
    panel.plot(trace.layers, trace.median, color=BLUE, linewidth=1.2, marker="o", markersize=2.5)
    panel.grid(visible=True, axis="y", color=GRID)
    panel.margins(x=0.04)
    whole_numbers(panel)


def whole_numbers(panel: "Axes") -> None:
    """No ticks between layers."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _warn(panel: "Axes", alarms: Sequence[str]) -> None:
    if alarms:
        text = shorten("Dead: " + "; ".join(alarms), _LETTERS, placeholder=" …")
        note = panel.annotate(
            text, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points",
            color=VERMILLION, fontsize=SMALL, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        # It reaches over all columns; the layout would widen the first for it.
        note.set_in_layout(False)


def _rows(found: dict[int, dict[str, Trace]], alarms: dict[int, list[str]]) -> list[Row]:
    return [
        line | {"alarm": "; ".join(alarms[row])}
        for row, instruments in found.items()
        for trace in instruments.values()
        for line in trace.rows()
    ]


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_FEWEST_LAYERS = 4
_MOST_PANELS = 28
_READING_layers = """\
Blue: what a method learned about each layer, the median over seeds of the mean over tasks with
its band (range for up to five seeds, else 10 to 90 %), thin lines single tasks. Orange: what
layers are worth, measured: the score of each one alone, or what is lost without it. Learned weights
are not importance; rho is the rank correlation of a method's weights with the measured worth, and
belongs to no test."""


def draw_layers(material: Material) -> Drawing | None:
    """A panel per measured map, then one per method and instrument."""
    maps = [one for one in (probe_map(material), single_map(material), *without_maps(material))
            if one is not None]  # fmt: skip
    learned = _learned(material)
    if not learned and not maps:
        return None
    return Drawing(
        name="layers",
        title="Layer attribution",
        reading=_READING_layers + _rest(len(learned) - _MOST_PANELS),
        figure=_figure_layers(maps, learned[:_MOST_PANELS]),
        data=[*(row for trace in learned for row in trace.rows()),
              *(row for one in maps for row in one.rows())],
    )  # fmt: skip


def _rest(left: int) -> str:
    return f" {left} more curves stand in the data of this figure only." if left > 0 else ""


def rank_correlation(first: Mapping[float, float], second: Mapping[float, float]) -> float:
    """Spearman's rho over the layers that both know; NaN below four, or if one is constant."""
    common = sorted(first.keys() & second.keys())
    if len(common) < _FEWEST_LAYERS:
        return float("nan")
    from scipy.stats import rankdata

    ranks = [rankdata([values[layer] for layer in common]) for values in (first, second)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.atleast_2d(np.corrcoef(ranks))[0, 1])


def _learned(material: Material) -> list[Trace]:
    """Weights and gates of all methods; of in-encoder families only the representative."""
    shown = representatives(material)
    found: list[Trace] = []
    # One method of each family first: where there are too many panels, these are drawn.
    for row in sorted(range(len(material.table.methods)), key=lambda row: (row not in shown, row)):
        for key, trace in traces(material, row).items():
            if key not in COLUMNS or (row in shown and not key.startswith("feedback")):
                found.append(trace)
    return found


def _figure_layers(maps: Sequence[Map], learned: Sequence[Trace]) -> "Figure":
    from matplotlib.figure import Figure

    count = len(maps) + len(learned)
    columns = min(_COLUMNS, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(2.15 * columns, 4.5), 1.65 * lines + 0.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_visible(False)
    for panel, one in zip(panels.flat, maps, strict=False):
        _map(panel, one)
    for panel, trace in zip(panels.flat[len(maps) :], learned, strict=False):
        curve(panel, trace)
        panel.set_title(wrapped(trace.method, 26))
        panel.set_xlabel(_beside(trace, maps))
        panel.set_ylabel(trace.key.replace("_", " "))
    return figure


def _beside(trace: Trace, maps: Sequence[Map]) -> str:
    """The axis' name, and how well a trace agrees with what was measured."""
    axis = "layer" if trace.key == "layer_weights" else "block"
    if not trace.single:
        return f"{axis} (sets at their middle)"
    weights = {float(at): float(v) for at, v in zip(trace.layers, trace.median, strict=True)}
    found = [(one, rank_correlation(weights, one.means)) for one in maps
             if one.method in ("", trace.method)]  # fmt: skip
    texts = [f"rho {rho:+.2f} with {one.short}" for one, rho in found if not np.isnan(rho)]
    return "\n".join([axis, *texts])


def _map(panel: "Axes", one: Map) -> None:
    tasks = (np.array(sorted(values.items())).T for values in one.tasks.values())
    thin(panel, ((layers, scores) for layers, scores in tasks), width=0.4, alpha=0.5)
    layers = sorted(one.means)
    panel.plot(layers, [one.means[at] for at in layers], color=ORANGE, linewidth=1.4, marker="s",
               markersize=3)  # fmt: skip
    panel.set_title(wrapped(one.title, 26))
    panel.set_xlabel("layer")
    panel.set_ylabel(one.unit)
    panel.grid(visible=True, axis="y", color=GRID)
    whole_numbers(panel)
