"""`tables/references`: per task, what single layers hold and what the reader leaves unread."""

from collections.abc import Sequence

from fusionbench.records.references import Reference, references
from fusionbench.records.scores import INSENSITIVE, SATURATED, ScoreTable, TaskFacts
from fusionbench.report.page import Page
from fusionbench.report.tables import GridRow, Row, conditions, latex_grid, markdown

_NOTE = """\
Closed-form reader (kernel ridge regression) on one hidden state, mean over runs, in percent.
*Unread* is the best of these minus the best single layer of the study's own reader. A task on which
no layer is above chance (one-sided, Bonferroni over layers, Holm over tasks, 5 %) is *insensitive*
and leaves the means over tasks; one on which every layer exceeds 98 % is *saturated*."""


def reference_page(tables: Sequence[ScoreTable]) -> Page:
    """One table for each condition with single layers under the closed-form reader."""
    texts, latex, rows = [], [], list[Row]()
    for table in tables:
        found = references(table)
        if not found:
            continue
        grid = [_row(table.tasks[column], one) for column, one in sorted(found.items())]
        title = table.condition.title
        parts = [f"### {title}", "", markdown(grid), _NOTE, *_sentences(table)]
        texts.append("\n".join(parts) + "\n")
        latex.append(
            latex_grid(grid, f"Single layers; {title}", f"references-{table.condition.label}")
        )
        rows += [
            {
                **conditions(table),
                "task": table.tasks[column].name,
                "layer": layer,
                "score": score,
                "own_score": one.own.get(layer),
                "chance": table.tasks[column].chance,
                "p_above_chance": one.p,
                "mark": table.tasks[column].mark,
            }
            for column, one in sorted(found.items())
            for layer, score in sorted(one.layers.items())
        ]
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def _row(task: TaskFacts, one: Reference) -> GridRow:
    own = max(one.own, key=lambda layer: one.own[layer]) if one.own else None
    return {
        "task": task.name,
        "chance": f"{100 * task.chance:.1f}",
        "best layer": f"{100 * one.layers[one.best]:.1f} (hs[{one.best}])",
        "last layer": f"{100 * one.layers[one.last]:.1f} (hs[{one.last}])",
        "own reader, best": "–" if own is None else f"{100 * one.own[own]:.1f} (hs[{own}])",
        "unread": "–" if one.unread is None else f"{100 * one.unread:.1f}",
        "mark": task.mark,
    }


def _sentences(table: ScoreTable) -> list[str]:
    """Which tasks are marked, by name."""
    lines = []
    for mark, text in (
        (INSENSITIVE, "left out of the means over tasks"),
        (SATURATED, "no method can be better than single layers there"),
    ):
        names = [f"`{task.name}`" for task in table.tasks if task.mark == mark]
        if names:
            lines += ["", f"{mark.capitalize()}: {', '.join(names)} ({text})."]
    return lines
