"""Which layers a method leans on, beside what the layers are worth on their own.

Learned weights are not importance: a layer may get weight because its norm is large, and a method
may do as well without it. So the weights stand beside scores of single layers (probes, or `layer`
cells of the study) and of the method without a layer, with their rank correlation.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.instruments import COLUMNS, curve, whole_numbers
from fusionbench.report.figures.labels import wrapped
from fusionbench.report.figures.lines import thin
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.representatives import representatives
from fusionbench.report.figures.singles import Map, probe_map, single_map, without_maps
from fusionbench.report.figures.traces import Trace, traces
from fusionbench.report.style import GRID, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_FEWEST_LAYERS = 4
_MOST_PANELS = 28
_READING = """\
Blue: what a method learned about each layer, the median over seeds of the mean over tasks with
its band (range for up to five seeds, else 10 to 90 %), thin lines single tasks. Orange: what
layers are worth, measured: the score of each one alone, or what is lost without it. Learned weights
are not importance; rho is the rank correlation of a method's weights with the measured worth, and
belongs to no test."""


def draw(material: Material) -> Drawing | None:
    """A panel per measured map, then one per method and instrument."""
    maps = [one for one in (probe_map(material), single_map(material), *without_maps(material))
            if one is not None]  # fmt: skip
    learned = _learned(material)
    if not learned and not maps:
        return None
    return Drawing(
        name="layers",
        title="Layer attribution",
        reading=_READING + _rest(len(learned) - _MOST_PANELS),
        figure=_figure(maps, learned[:_MOST_PANELS]),
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


def _figure(maps: Sequence[Map], learned: Sequence[Trace]) -> "Figure":
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
