"""The example browser of the HTML page: on which test examples two methods differ.

Every example of a method has a level, the number of runs that were right; of more than 7 runs the
share in sevenths. Two levels make one letter, so that the page stays small.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusionbench.records.pairs import Results
from fusionbench.records.pictures import ExamplePictures
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.html.cards import picture_of
from fusionbench.report.leaderboard import ranked
from fusionbench.report.page import Material

MOST_LEVELS = 7
"""The highest level that fits into half a letter."""
MOST_EXAMPLES = 512
"""Of one task, the first ones."""
MOST_LETTERS = 600_000
"""Of all methods together; the methods with the lowest means are left out."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def browser(report: Material, pictures: Sequence[ExamplePictures]) -> str:
    """Everything that the browser needs, as JSON for a script element; empty without examples.

    Only the first condition of the folder has a browser.
    """
    if not report.analyses:
        return ""
    analysis = report.analyses[0]
    table = analysis.table
    tasks = list(_tasks(report.results, table, pictures))
    if not tasks or len(table.methods) < 2:
        return ""
    room = MOST_LETTERS // sum(-(-len(task["right"]) // 2) for task in tasks)
    methods = _order(analysis)[: max(room, 2)]
    values = {
        "condition": table.condition.title,
        "left_out": len(table.methods) - len(methods),
        "methods": [table.methods[row] for row in methods],
        "pair": _first(analysis, methods),
        "tasks": [
            {key: value for key, value in task.items() if key != "column"}
            | {"levels": [_letters(report.results, table, row, task) for row in methods]}
            for task in tasks
        ],
    }
    # The text stands inside an element: no tag may begin in it.
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _order(analysis: Analysis) -> list[int]:
    """Baseline and planned methods first, then by the mean."""
    order = ranked(analysis, analysis.scopes[0], everything=True)
    first = {analysis.plan.baseline, *(one.method for one in analysis.plan.contrasts)}
    return sorted(order, key=lambda row: analysis.table.methods[row] not in first)


def _first(analysis: Analysis, methods: Sequence[int]) -> list[int]:
    """The pair that is shown first: the highest planned method and the baseline."""
    names = [analysis.table.methods[row] for row in methods]
    baseline = names.index(analysis.plan.baseline) if analysis.plan.baseline in names else 1
    other = next(place for place in range(len(names)) if place != baseline)
    return [other, baseline]


def _tasks(
    results: Results, table: ScoreTable, pictures: Sequence[ExamplePictures]
) -> Iterator[dict[str, Any]]:
    """Each task whose runs share their examples: names, questions, answers and tiles."""
    for column, facts in enumerate(table.tasks):
        done = [
            run
            for row in range(len(table.methods))
            for run in table.runs(row, column)
            if run.status == "done" and run.outcomes
        ]
        if not done or len({run.items for run in done}) != 1 or not done[0].items:
            continue
        number, drawn = picture_of(pictures, done)
        names = results.store.items(done[0]).names[:MOST_EXAMPLES]
        count = len(names)
        shown: dict[str, Any] = {
            "name": facts.name,
            "column": column,
            "runs": len({run.spec.seed for run in done}),
            "top": min(len({run.spec.seed for run in done}), MOST_LEVELS),
            "right": list(drawn.right[:count]) if drawn else [0] * count,
        }
        if drawn:
            shown |= {
                "texts": list(drawn.texts),
                "questions": list(drawn.questions[:count]),
                "answers": list(drawn.answers),
                "tiles": list(drawn.tiles[:count]),
                "sheet": number,
                "size": [drawn.width, drawn.height, drawn.columns, *drawn.size],
            }
        else:
            shown["names"] = list(names)
        yield shown


def _letters(results: Results, table: ScoreTable, row: int, task: Mapping[str, Any]) -> str:
    """The levels of one method on one task, two to a letter; empty without runs."""
    runs = table.runs(row, task["column"])
    done = [run for run in runs if run.status == "done" and run.outcomes]
    if not done:
        return ""
    means = np.mean([results.outcomes(run) for run in done], axis=0)[: len(task["right"])]
    return packed(levels(means, task["top"]))


def levels(means: Float[np.ndarray, " example"], top: int) -> Int[np.ndarray, " example"]:
    """Mean outcomes, 0 to 1, as levels from 0 to `top`."""
    return np.rint(np.clip(means, 0, 1) * top).astype(np.int64)


def packed(found: Int[np.ndarray, " example"]) -> str:
    """Two levels to a letter; an odd last one is paired with 0."""
    even = np.append(found, 0) if len(found) % 2 else found
    return "".join(LETTERS[high * 8 + low] for high, low in even.reshape(-1, 2).tolist())
