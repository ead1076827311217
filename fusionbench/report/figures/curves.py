"""Curves by method: training loss over steps, and the performance profile."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from fusionbench.records.scores import Condition
from fusionbench.report.figures.panels import (
    FigureData,
    at_edge,
    legend,
    method_curves,
    method_handles,
    panel_grid,
    representatives,
    wrapped,
)
from fusionbench.report.figures.style import GRID, Drawing
from fusionbench.stats.ranks import performance_profile

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_THRESHOLDS = 101
_ONE_PER_FAMILY = """\
Coloured: one method per family, chosen by name. Grey: all others."""
_READING_LEARNING = f"""\
Training loss at evenly spaced steps, mean over runs. It shows whether a method trained at all and
whether its loss still fell when training ended. It does not rank methods: a lower training loss may
be overfitting. {_ONE_PER_FAMILY}"""
_READING_PROFILE = f"""\
Share of all (run, task) scores above a threshold. Scores are chance-corrected: 0 is chance, 1 is
every answer correct. A curve further up and right is better; where two curves cross, each method is
better on other tasks. {_ONE_PER_FAMILY} Descriptive: no test is made."""


def draw_learning(data: FigureData) -> Drawing | None:
    """A panel per task; None where no record holds a loss."""
    rows = _losses(data)
    if rows.empty:
        return None
    return Drawing(
        name="learning",
        title="Learning curves",
        reading=_READING_LEARNING,
        figure=_learning(data, rows),
        rows=rows,
    )


def steps_of(points: int, steps: int) -> Int[np.ndarray, " point"]:
    """Steps (from 1) at which the losses of a record were noted."""
    return np.linspace(0, steps - 1, points).round().astype(np.int64) + 1


def _trained_steps(condition: Condition) -> int:
    """Steps of a whole training: of all stages that train something, in the track `vlm`."""
    steps = condition.budget.steps
    if condition.training is None:
        return steps
    return sum(stage.steps or steps for stage in condition.training.stages if stage.trained)


def _losses(data: FigureData) -> "pd.DataFrame":
    """Mean loss over runs by method, task and step."""
    import pandas as pd

    table = data.table
    steps = _trained_steps(table.condition)
    keys, losses = ["method", "task", "step"], ["method", "task", "step", "loss"]
    runs = [
        (data.labels[row], table.tasks[task].name, steps_of(len(record.loss), steps), record.loss)
        for (row, task, _), record in sorted(table.cells.items())
        if record.status == "done" and record.loss
    ]
    frame = pd.DataFrame(runs, columns=losses).explode(["step", "loss"])
    frame = frame.astype({"step": int, "loss": float})
    return frame.groupby(keys, sort=False)["loss"].mean().reset_index()


def _learning(data: FigureData, rows: "pd.DataFrame") -> "Figure":
    tasks = [task.name for task in data.table.tasks]
    shown = [data.labels[row] for row in representatives(data)]
    figure, panels = panel_grid(len(tasks), columns=5, size=(1.95, 1.55))
    for panel, task in zip(panels, tasks, strict=True):
        first_column, last_line = at_edge(panel)
        method_curves(panel, rows[rows["task"] == task], "step", "loss", shown, every=8)
        panel.set_title(wrapped(task))
        panel.set_xlabel("step" if last_line else "")
        panel.set_ylabel("training loss" if first_column else "")
        panel.grid(visible=True, axis="y", color=GRID)
        panel.margins(x=0.02)
    legend(figure, method_handles(shown, rows))
    return figure


def draw_profile(data: FigureData) -> Drawing | None:
    """Performance profile (Agarwal et al. 2021) of methods that ran everywhere; None below two."""
    rows = _profiles(data)
    if rows["method"].nunique() < 2:
        return None
    return Drawing(
        name="profile",
        title="Performance profile",
        reading=_READING_PROFILE,
        figure=_profile(data, rows),
        rows=rows,
    )


def _profiles(data: FigureData) -> "pd.DataFrame":
    """Share of scores above each threshold, by method."""
    import pandas as pd

    table = data.table
    chance = np.array([task.chance for task in table.tasks])[:, None]
    scores = (table.values - chance) / (1 - chance)
    complete = [row for row in range(len(scores))
                if row not in table.leaky and not np.isnan(scores[row]).any()]  # fmt: skip
    thresholds = np.linspace(scores[complete].min(initial=0.0), 1, _THRESHOLDS)
    found = [
        (data.labels[row], thresholds, performance_profile(scores[row].T, thresholds))
        for row in complete
    ]
    frame = pd.DataFrame(found, columns=["method", "threshold", "share"])
    return frame.explode(["threshold", "share"]).astype({"threshold": float, "share": float})


def _profile(data: FigureData, rows: "pd.DataFrame") -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    shown = [data.labels[row] for row in representatives(data, complete=True)]
    method_curves(axes, rows, "threshold", "share", shown, every=20)
    # No score is above the lowest threshold where all of them equal it: the axis ends at 1.
    reached = rows["threshold"].where(rows["share"] > 0).max()
    axes.set_xlim(rows["threshold"].min(), float(np.fmin(reached + 0.02, 1.0)))
    axes.set_ylim(0, 1)
    axes.grid(visible=True, color=GRID)
    axes.set_xlabel("threshold: chance-corrected score")
    axes.set_ylabel("share of runs above it")
    figure.legend(handles=method_handles(shown, rows), loc="outside right upper")
    return figure
