"""The instruments of methods that write into the encoder, and an alarm for modules that are dead.

Drawn for whatever leaves these traces, as Mema and its variants do.
"""

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.labels import wrapped
from fusionbench.report.figures.lines import thin
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.traces import Trace, traces
from fusionbench.report.style import BLUE, GRID, SMALL, VERMILLION
from fusionbench.report.tables import Row

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
_READING = """\
A row per method, a column per instrument, block by block: the line is the median over seeds of the
mean over tasks, the band their spread (range for up to five seeds, else 10 to 90 %), thin lines
single tasks. "Dead" in orange is an alarm: a parameter that no gradient ever reached, or an
instrument that stays at its end in every block. Variants that leave a part out by design are
silent there and should be."""


def draw(material: Material) -> Drawing | None:
    """None where no method leaves these traces."""
    found = {row: _instruments(material, row) for row in range(len(material.table.methods))}
    found = {row: instruments for row, instruments in found.items() if instruments}
    if not found:
        return None
    alarms = {row: alarm(material, row, instruments) for row, instruments in found.items()}
    return Drawing(
        name="instruments",
        title="Instruments of in-encoder methods",
        reading=_READING,
        figure=_figure(material, found, alarms),
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


def _figure(
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
