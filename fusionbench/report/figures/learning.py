"""Learning curves: the training loss of each task, a line per method."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.labels import wrapped
from fusionbench.report.figures.legend import legend, series_handles
from fusionbench.report.figures.lines import thin
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.representatives import representatives
from fusionbench.report.style import GRID, series
from fusionbench.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
_READING = """\
Training loss at evenly spaced steps, the mean over runs. It shows whether training had ended when
it was stopped and whether a method trained at all, not which one is better: a lower training loss
may be overfitting. Drawn is one method per family, chosen by name; thin grey lines are all
others."""

Curve = Float[np.ndarray, " point"]


def draw(material: Material) -> Drawing | None:
    """A panel per task."""
    curves = _curves(material)
    if not curves:
        return None
    return Drawing(
        name="learning",
        title="Learning curves",
        reading=_READING,
        figure=_figure(material, curves),
        data=list(_rows(material, curves)),
    )


def steps_of(points: int, steps: int) -> Int[np.ndarray, " point"]:
    """The steps (from 1) at which a record's losses were noted."""
    return np.linspace(0, steps - 1, points).round().astype(np.int64) + 1


def _curves(material: Material) -> dict[tuple[int, int], Curve]:
    """(row, task) -> mean loss over runs; runs of another length count for nothing."""
    found: dict[tuple[int, int], list[Curve]] = {}
    for (row, task, _), record in sorted(material.table.cells.items()):
        if record.status == "done" and record.loss:
            found.setdefault((row, task), []).append(np.array(record.loss, dtype=float))
    return {
        place: np.mean([loss for loss in losses if len(loss) == len(losses[0])], axis=0)
        for place, losses in found.items()
    }


def _figure(material: Material, curves: Mapping[tuple[int, int], Curve]) -> "Figure":
    from matplotlib.figure import Figure

    tasks = material.table.tasks
    columns = min(_COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    shown = representatives(material)
    figure = Figure(figsize=(max(1.95 * columns, 5.0), 1.55 * lines + 0.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for task, panel in enumerate(panels.flat):
        if task >= len(tasks):
            panel.set_visible(False)
            continue
        here = {row: curve for (row, column), curve in curves.items() if column == task}
        _panel(panel, here, shown, material.table.condition.budget.steps)
        panel.set_title(wrapped(tasks[task].name))
        if task >= len(tasks) - columns:
            panel.set_xlabel("step")
        if task % columns == 0:
            panel.set_ylabel("training loss")
    legend(figure, series_handles([material.labels[row] for row in shown]))
    return figure


def _panel(panel: "Axes", curves: Mapping[int, Curve], shown: list[int], steps: int) -> None:
    others = (curve for row, curve in curves.items() if row not in shown)
    thin(panel, ((steps_of(len(one), steps), one) for one in others), width=0.5, alpha=0.4)
    for position, row in enumerate(shown):
        if row in curves:
            look, curve = series(position), curves[row]
            panel.plot(steps_of(len(curve), steps), curve, color=look.color, linestyle=look.line,
                       linewidth=1.1, marker=look.marker, markersize=3.5,
                       markevery=(2 * position % 8, 8))  # fmt: skip
    panel.grid(visible=True, axis="y", color=GRID)
    panel.margins(x=0.02)


def _rows(material: Material, curves: Mapping[tuple[int, int], Curve]) -> Iterator[Row]:
    table = material.table
    for (row, task), curve in curves.items():
        for step, loss in zip(
            steps_of(len(curve), table.condition.budget.steps), curve, strict=True
        ):
            yield {"method": material.labels[row], "task": table.tasks[task].name,
                   "step": str(step), "loss": f"{loss:.6f}"}  # fmt: skip
