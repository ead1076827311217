"""Methods that scored as another one on every example, and methods that see nothing.

A reader that gets no information from a method gives one answer to every example, whatever the
image. Records have the number of distinct answers. Those written before it was stored show it by
their outcomes: on a task, the right examples of two such runs are those of one class each, hence
the same or without overlap, and their share is at most sqrt(chance), since chance is the sum of the
squared shares of the answers.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Shaped

from fusionbench.records.cell import CellRecord
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable

_FEWEST = 2
"""Runs of a task that are compared; one run shows nothing."""
_ROUNDING = 1e-9


def scored_alike(table: ScoreTable) -> Iterator[str]:
    """A sentence for each method that scored as another on every example."""
    for row, other in sorted(table.identical.items()):
        cells = sum(record.status == "done" for record in table.row(row))
        yield (
            f"`{table.methods[row]}` scored as `{table.methods[other]}` on every single example of "
            f"all {cells} cells: the two scored alike and cannot be told apart here.\n"
        )


def dead(results: Results, table: ScoreTable) -> Iterator[str]:
    """A line for each method with runs that give one answer to every example of a task."""
    for row, tasks in dead_tasks(results, table).items():
        name = table.methods[row]
        yield f"- {name}: dead on {', '.join(tasks)}: one and the same answer to every example"


def dead_tasks(results: Results, table: ScoreTable) -> dict[int, list[str]]:
    """Row of each method with such runs -> the tasks, with the number of runs if not all are."""
    found = {}
    for row in range(len(table.methods)):
        said = [_dead_on(results, table, row, column) for column in range(len(table.tasks))]
        if tasks := [text for text in said if text]:
            found[row] = tasks
    return found


def _dead_on(results: Results, table: ScoreTable, method: int, task: int) -> str:
    """The task's name if the method is dead there, with the number of such runs if not all are."""
    facts = table.tasks[task]
    done = [run for run in table.runs(method, task) if run.status == "done"]
    counts = [run.distinct for run in done]
    if not counts or not all(counts):
        guessed = one_answer(_outcomes(results, done), chance=facts.chance)
        return facts.name if guessed else ""
    few = counts.count(1)
    if not few:
        return ""
    return facts.name if few == len(counts) else f"{facts.name} ({few} of {len(counts)} runs)"


def one_answer(outcomes: Sequence[Shaped[np.ndarray, " example"]], *, chance: float) -> bool:
    """Whether the outcomes of these runs of a task are those of a constant answer each.

    False below two runs, and for outcomes other than 0 and 1.
    """
    if len(outcomes) < _FEWEST or len({len(each) for each in outcomes}) > 1:
        return False
    right = np.array(outcomes)
    shares = right.mean(axis=1)
    if not np.isin(right, (0, 1)).all() or shares.max() > chance**0.5 + _ROUNDING:
        return False
    pairs = combinations(right.astype(np.bool_), 2)
    apart = all(np.array_equal(one, other) or not (one & other).any() for one, other in pairs)
    # Runs that are right nowhere share no class either, but may be anything.
    return apart and bool(shares.min() > 0)


def _outcomes(results: Results, done: Sequence[CellRecord]) -> list[Shaped[np.ndarray, " example"]]:
    kept = [run for run in done if run.outcomes]
    return [results.outcomes(run) for run in kept] if len({run.items for run in kept}) == 1 else []
