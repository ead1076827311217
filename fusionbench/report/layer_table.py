"""`tables/layers` and `tables/references`: traces of methods, and scores of single layers.

Traces are layer weights, gate openings, memory and feedback sizes as the method reports them: they
describe what it uses and are no evidence of what it needs.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.references import Reference, references
from fusionbench.records.scores import INSENSITIVE, SATURATED, ScoreTable, TaskFacts
from fusionbench.report.analysis import Analysis
from fusionbench.report.page import Page
from fusionbench.report.tables import GridRow, Row, conditions, latex_grid, markdown

Places = tuple[str, ...]
TraceRuns = Float[np.ndarray, "run layer"]
_LAYERS_NOTE = (
    "Median over tasks and runs [smallest to largest]. `tap` columns are the hidden states that "
    "the method reads, `block` columns the encoder's blocks, `value` columns what is neither; "
    "layers.csv has every task."
)


def layer_page(analyses: Sequence[Analysis]) -> Page:
    """Methods that report a trace, one row for each kind of trace."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in analyses:
        table = analysis.table
        grids = _grids(table)
        if not grids:
            continue
        parts = [f"### {table.condition.title}", "", _LAYERS_NOTE, ""]
        texts.append("\n".join([*parts, *(markdown(grid) for grid in grids)]))
        for number, grid in enumerate(grids, 1):
            label = f"layers-{table.condition.label}-{number}"
            latex.append(latex_grid(grid, f"Layers; {table.condition.title}", label))
        rows += _long(table)
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def _grids(table: ScoreTable) -> list[list[GridRow]]:
    """One table for each set of columns: traces of different length do not share one."""
    grids: dict[Places, list[GridRow]] = defaultdict(list)
    for method, name in enumerate(table.methods):
        for (instrument, places), runs in _traces(table.row(method)).items():
            row = {"method": name, "instrument": instrument.replace("_", " ")}
            grids[places].append(row | dict(zip(places, _texts(runs), strict=True)))
    return [grids[places] for places in sorted(grids)]


def _long(table: ScoreTable) -> Iterator[Row]:
    for method, name in enumerate(table.methods):
        for task, facts in enumerate(table.tasks):
            for (instrument, places), runs in _traces(table.runs(method, task)).items():
                numbers = zip(
                    np.median(runs, axis=0), runs.min(axis=0), runs.max(axis=0), strict=True
                )
                for index, (place, ends) in enumerate(zip(places, numbers, strict=True)):
                    middle, low, high = ends
                    yield {
                        **conditions(table),
                        "method": name,
                        "task": facts.name,
                        "trace": instrument,
                        "layer": place,
                        "position": index,
                        "median": float(middle),
                        "low": float(low),
                        "high": float(high),
                        "n_seeds": len(runs),
                    }


def _traces(records: Sequence[CellRecord]) -> dict[tuple[str, Places], TraceRuns]:
    """Runs by kind of trace and labels of its numbers; taps may differ between runs."""
    found: dict[tuple[str, Places], list[list[float]]] = defaultdict(list)
    for record in records:
        for name, values in sorted(record.trace.items()):
            if values:
                found[name, places_of(record, len(values))].append(values)
    return {key: np.array(runs, dtype=np.float64) for key, runs in found.items()}


def places_of(record: CellRecord, count: int) -> Places:
    """The label of each number: the method's taps, those that join layers, or the blocks."""
    return _places(() if record.in_encoder else record.taps, count)


@lru_cache(maxsize=1024)
def _places(taps: tuple[tuple[int, ...], ...], count: int) -> Places:
    joined = tuple(tap for tap in taps if len(tap) > 1)
    for named in (taps, joined):
        if len(named) == count:
            return tuple("tap " + tap_text(tap) for tap in named)
    return tuple(f"{'value' if joined else 'block'} {index}" for index in range(1, count + 1))


def tap_text(tap: Sequence[int]) -> str:
    """`7`, or `1-8` for a mean over neighbours."""
    if len(tap) == 1:
        return str(tap[0])
    span = list(range(min(tap), max(tap) + 1))
    return f"{span[0]}-{span[-1]}" if list(tap) == span else "+".join(map(str, tap))


def _texts(values: TraceRuns) -> list[str]:
    middle, low, high = np.median(values, axis=0), values.min(axis=0), values.max(axis=0)
    return [
        f"{centre:.2f} [{least:.2f} to {most:.2f}]"
        for centre, least, most in zip(middle, low, high, strict=True)
    ]


_REFERENCES_NOTE = """\
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
        parts = [f"### {title}", "", markdown(grid), _REFERENCES_NOTE, *_sentences(table)]
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
