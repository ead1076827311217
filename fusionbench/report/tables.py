"""Tables as rows of text: Markdown for people, CSV for programs. Nothing here is rounded twice."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from tabulate import tabulate

from fusionbench.records.scores import ScoreTable
from fusionbench.report.summary import Summary, across, cell

Row = dict[str, str]

_NUMBERS = ("fusion", "projector", "reader")


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; numbers stay as they were written."""
    if not rows:
        return "Nothing to show.\n"
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def comma_separated(rows: Sequence[Row]) -> str:
    """The same as CSV."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def names(table: ScoreTable) -> list[str]:
    """Methods as a reader should see them: `mema-no_feedback (= penultimate)`."""
    same = table.twins
    return [
        f"{name} (= {table.methods[same[row]]})" if row in same else name
        for row, name in enumerate(table.methods)
    ]


def summary_rows(table: ScoreTable) -> list[Row]:
    """One row per method: the suite's mean, that of each group of tasks, the fusion's size."""
    columns = {f"{name} ({_tasks(keep)})": keep for name, keep in aggregates(table)}
    return [
        {"method": name}
        | {title: across(table, method, keep).text for title, keep in columns.items()}
        | {"fusion parameters": sizes(table, method)["fusion"]}
        for method, name in enumerate(names(table))
    ]


def summary_long_rows(table: ScoreTable) -> list[Row]:
    """One row for each method and aggregate, all digits, for programs."""
    rows = []
    for method, name in enumerate(names(table)):
        fusion = sizes(table, method)["fusion"]
        for title, keep in aggregates(table):
            found = across(table, method, keep)
            rows.append(
                {"encoder": table.condition.encoder, "steps": str(table.condition.budget.steps)}
                | {"method": name, "aggregate": title, "n_tasks": str(int(keep.sum()))}
                | _interval(found)
                | {"text": found.text, "fusion": fusion}
            )
    return rows


def aggregates(table: ScoreTable) -> list[tuple[str, Bool[np.ndarray, " task"]]]:
    """The sets of tasks that a mean is taken over: the suite and its groups."""
    groups = sorted({task.group for task in table.tasks if task.in_suite and task.group})
    found = [("suite", table.suite)]
    for group in groups:
        keep = np.array([task.group == group for task in table.tasks], dtype=np.bool_)
        found.append((group, keep & table.suite))
    return found


def score_rows(table: ScoreTable) -> list[Row]:
    """Methods by tasks, and the chance level below."""
    rows: list[Row] = [
        {"method": name}
        | {task.name: cell(table, method, column).text for column, task in enumerate(table.tasks)}
        for method, name in enumerate(names(table))
    ]
    chance = {task.name: f"{100 * task.chance:.1f}" for task in table.tasks}
    examples = {task.name: str(task.examples) for task in table.tasks}
    return [*rows, {"method": "chance"} | chance, {"method": "test examples"} | examples]


def long_rows(table: ScoreTable) -> list[Row]:
    """One row for each method and task, all digits, for programs."""
    return [
        long_row(table, method, column, cell(table, method, column))
        for method in range(len(table.methods))
        for column in range(len(table.tasks))
    ]


def sizes(table: ScoreTable, method: int) -> dict[str, str]:
    """Parameters of the fusion, the projector and the reader: `1,024` or `980-1,024`."""
    done = [record for record in table.row(method) if record.status == "done"]
    texts = {}
    for part in _NUMBERS:
        counts = [record.parameters.get(part, 0) for record in done]
        ends = sorted({min(counts), max(counts)}) if counts else []
        texts[part] = "-".join(f"{count:,}" for count in ends) or "-"
    return texts


def conditions(table: ScoreTable) -> Row:
    """What tells the rows of several conditions apart."""
    condition = table.condition
    steps = str(condition.budget.steps)
    return {"track": condition.track, "encoder": condition.encoder, "steps": steps}


def long_row(table: ScoreTable, method: int, column: int, found: Summary) -> Row:
    """One method on one task; `found` is its mean and interval."""
    task, here = table.tasks[column], table.runs(method, column)
    done = [record for record in here if record.status == "done"]
    parameters = done[0].parameters if done else {}
    return {
        **conditions(table),
        "method": table.methods[method],
        "task": task.name,
        "group": task.group,
        "metric": task.metric,
        **_interval(found),
        "n_examples": str(task.examples),
        "chance": _digits(task.chance),
        **{f"parameters_{part}": str(parameters.get(part, "")) for part in _NUMBERS},
        "in_encoder": str(any(record.in_encoder for record in here)).lower(),
    }


def _interval(found: Summary) -> Row:
    return {
        "mean": _digits(found.mean),
        "ci_low": _digits(found.low),
        "ci_high": _digits(found.high),
        "n_seeds": str(found.runs),
        "status": "done" if found.runs else found.why,
    }


def _tasks(keep: Bool[np.ndarray, " task"]) -> str:
    return "1 task" if keep.sum() == 1 else f"{int(keep.sum())} tasks"


def _digits(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
