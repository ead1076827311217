"""What several figures share: their input, grids of panels, legends, curves and labels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fusionbench.records.cost import CostRecord
from fusionbench.records.pairs import Results
from fusionbench.records.probes import ProbeMap
from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import ContrastRow
from fusionbench.report.figures.style import (
    GRID,
    GUIDE,
    IN_ENCODER,
    LOOKS,
    ON_FEATURES,
)
from fusionbench.report.tables import names

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST = 10
"""Methods that one panel shows as named curves."""


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One condition: its score table and contrasts, cost profiles, and probes of its encoder."""

    table: ScoreTable
    results: Results
    baseline: str = ""
    contrasts: Sequence[ContrastRow] = ()
    planned: Sequence[str] = ()
    """Methods of the planned contrasts."""
    margins: tuple[float, float] = (1.0, 2.0)
    """Equivalence margins in points: over the suite, on a task."""
    profiles: Sequence[CostRecord] = ()
    probes: Sequence[ProbeMap] = ()

    @cached_property
    def labels(self) -> list[str]:
        """Printed names of the methods, in the order of the table."""
        return names(self.table)

    @cached_property
    def in_encoder(self) -> list[bool]:
        """For each method whether the encoder runs in every training step."""
        rows = range(len(self.table.methods))
        return [any(run.in_encoder for run in self.table.row(row)) for row in rows]

    def row(self, method: str) -> int | None:
        """Row of a method in the table, None if it was not run."""
        return self.table.methods.index(method) if method in self.table.methods else None


def representatives(data: FigureData, *, complete: bool = False) -> list[int]:
    """Rows of at most `MOST` methods, one per family, in the order of the table.

    Chosen by name, never by score: the baseline, then methods of planned contrasts, then the
    method that a family declares as its representative, then the first of a family by name.
    `complete` keeps only methods that ran on every task of the table with every seed.
    """
    methods = data.table.methods
    allowed = [row for row in range(len(methods)) if not complete or _complete(data.table, row)]
    chosen: dict[str, int] = {}
    for row in sorted(allowed, key=lambda row: (_priority(data, row), methods[row])):
        first = data.table.row(row)[0]
        chosen.setdefault(first.family or first.spec.method.partition("-")[0], row)
    return sorted(list(chosen.values())[:MOST])


def _priority(data: FigureData, row: int) -> int:
    method = data.table.methods[row]
    if method == data.baseline:
        return 0
    if method in data.planned:
        return 1
    return 2 if data.table.row(row)[0].representative else 3


def _complete(table: ScoreTable, row: int) -> bool:
    """Whether a method finished everywhere; one that reads the answers is never ranked."""
    done = sum(record.status == "done" for record in table.row(row))
    return row not in table.leaky and done == len(table.tasks) * len(table.seeds)


LABEL_INCHES = 0.125
"""Height of a label in a column of labels."""
_ROW_INCHES = 0.155
_INCHES_PER_LETTER = 0.062
_INCHES_PER_LINE = 0.16
_PAD_POINTS = 14.0


def panel_grid(
    count: int,
    *,
    columns: int,
    size: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.2),
    **shared: Any,
) -> tuple["Figure", list["Axes"]]:
    """A figure with `count` panels of `size` inches in at most `columns` balanced columns."""
    from matplotlib.figure import Figure

    lines = -(-count // columns)
    columns = -(-count // lines)
    width, height = margin[0] + size[0] * columns, margin[1] + size[1] * lines
    figure = Figure(figsize=(max(width, 5.0), height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, **shared)
    for panel in panels.flat[count:]:
        panel.set_visible(False)
    return figure, list(panels.flat[:count])


def method_panels(
    labels: Sequence[str], count: int, *, columns: int, width: float, **shared: Any
) -> tuple["Figure", list["Axes"]]:
    """Panels with one row per method, from the top, named at the left."""
    size = (width, len(labels) * _ROW_INCHES + 0.65)
    figure, panels = panel_grid(
        count, columns=columns, size=size, margin=(1.8, 0.1), sharey=True, **shared
    )
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    for panel in panels:
        panel.yaxis.set_visible(at_edge(panel)[0])
        panel.tick_params(axis="x", labelbottom=True)
        panel.hlines(range(len(labels)), 0, 1, colors=GRID, linewidth=0.5,
                     transform=panel.get_yaxis_transform(), zorder=0)  # fmt: skip
    return figure, panels


def at_edge(panel: "Axes") -> tuple[bool, bool]:
    """Whether a panel is in the first column, and whether it is in the last line."""
    place = panel.get_subplotspec()
    return (place.is_first_col(), place.is_last_row()) if place else (True, True)


def grey_lines(
    panel: "Axes", lines: Iterable[Float[np.ndarray, "point 2"]], *, width: float, alpha: float
) -> None:
    """Draw many thin lines as one artist; one artist each takes ten times as long."""
    from matplotlib.collections import LineCollection

    panel.add_collection(LineCollection(list(lines), colors=GUIDE, linewidths=width, alpha=alpha))
    # matplotlib before 3.11 does not ask for it.
    panel.autoscale_view()


def method_curves(
    panel: "Axes", frame: "pd.DataFrame", x: str, y: str, shown: Sequence[str], every: int
) -> None:
    """Draw a curve of `y` over `x` for each method: named ones in colour, all others in grey.

    Every `every`-th point has a marker.
    """
    named = frame["method"].isin(shown)
    others = (curve[[x, y]].to_numpy() for _, curve in frame[~named].groupby("method"))
    grey_lines(panel, others, width=0.5, alpha=0.4)
    curves = dict(list(frame[named].groupby("method")))
    for position, (name, look) in enumerate(zip(shown, LOOKS, strict=False)):
        if name in curves:
            panel.plot(curves[name][x], curves[name][y], **look, linewidth=1.1, markersize=3.5,
                       markeredgewidth=0, markevery=(2 * position % every, every))  # fmt: skip


def method_handles(shown: Sequence[str], frame: "pd.DataFrame") -> list["Line2D"]:
    """Legend entries of the `method_curves` of a frame; a method without a curve has none."""
    from matplotlib.lines import Line2D

    drawn = set(frame["method"])
    handles = [
        Line2D([], [], **look, markersize=4, linewidth=1.1, markeredgewidth=0, label=name)
        for name, look in zip(shown, LOOKS, strict=False)
        if name in drawn
    ]
    others = [Line2D([], [], color=GUIDE, linewidth=0.5, label="all others")]
    return handles + (others if drawn - set(shown) else [])


def encoder_handles() -> list["Line2D"]:
    """Legend entries of methods on cached features and methods in the encoder."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker=marker, markersize=4, linestyle="", label=label)
        for color, marker, label in (
            (ON_FEATURES, "o", "on cached features"),
            (IN_ENCODER, "^", "in the encoder"),
        )
    ]


def legend(figure: "Figure", handles: Sequence["Line2D"]) -> None:
    """Put a legend above all panels; the figure grows by its lines."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    fit = int((figure.get_figwidth() - 0.3) / (0.55 + longest * _INCHES_PER_LETTER))
    columns = max(1, min(fit, len(handles)))
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + _INCHES_PER_LINE * lines)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns)


def wrapped(name: str, letters: int = 21) -> str:
    """A long name over several lines, broken after `_`, `-` or a space where that is possible."""
    lines = [""]
    for part in re.findall(r"[^_\- ]*[_\- ]*", name):
        while len(part) > letters:
            lines, part = [*lines, part[:letters]], part[letters:]
        if len(lines[-1]) + len(part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line)


def spread(wanted: Float[np.ndarray, " label"], gap: float) -> Float[np.ndarray, " label"]:
    """Positions in [0, 1], at least `gap` apart, nearest to the wanted ones by least squares.

    The order is kept, ties go by position. Under the gaps the solution is isotonic regression of
    `wanted - rank * gap`. Raises ValueError if they cannot fit.
    """
    from scipy.optimize import isotonic_regression

    count = len(wanted)
    if count and (count - 1) * gap > 1 + 1e-9:
        raise ValueError(f"{count} labels with a gap of {gap:g} do not fit into 1")
    order = np.argsort(wanted, kind="stable")
    ranks = np.arange(count) * gap
    found = np.empty(count)
    fitted = isotonic_regression(wanted[order] - ranks).x
    found[order] = np.clip(fitted, 0, max(1 - (count - 1) * gap, 0)) + ranks
    return found


def label_column(
    axes: "Axes", heights: Float[np.ndarray, " label"], texts: Sequence[str], inches: float
) -> None:
    """Labels right of the axes, joined to their heights; `inches` is the height of the axes.

    They are tick labels of a second axis, so that the layout makes room for them.
    """
    low, high = axes.get_ylim()
    at = (heights - low) / (high - low)
    slots = spread(at, min(LABEL_INCHES / inches, 1 / max(len(at) - 1, 1)))
    right = axes.twinx()
    right.set_ylim(0, 1)
    right.set_yticks(slots, texts)
    right.tick_params(axis="y", right=False, pad=_PAD_POINTS)
    for spine in right.spines.values():
        spine.set_visible(False)
    for start, end in zip(at, slots, strict=True):
        _leader(axes, float(start), float(end))


def _leader(axes: "Axes", start: float, end: float) -> None:
    """A thin line from the right edge of the axes to a label."""
    from matplotlib.transforms import ScaledTranslation

    right = ScaledTranslation((_PAD_POINTS - 2) / 72, 0, axes.figure.dpi_scale_trans)
    axes.annotate(
        "", xy=(1, start), xytext=(1, end), xycoords="axes fraction",
        textcoords=axes.transAxes + right, annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": GUIDE, "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
