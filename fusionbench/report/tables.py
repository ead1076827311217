"""Tables as rows of text: Markdown for people, CSV for programs. Nothing here is rounded twice."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from tabulate import tabulate

from fusionbench.records.scores import ScoreTable
from fusionbench.stats.estimate import Estimate

# Numbers as text: all digits for programs, points for people, nothing where there is nothing.


def digits(value: float | None) -> str:
    """A share or a difference for programs: six decimals."""
    return "" if value is None or math.isnan(value) else f"{round(value, 6) + 0.0:.6f}"


def precise(value: float | None) -> str:
    """A p-value, a standard error, degrees of freedom: eight digits that count."""
    return "" if value is None or math.isnan(value) else f"{value:.8g}"


def points(value: float | None, *, sign: bool = True) -> str:
    """A difference in points: `+1.2`."""
    if value is None or math.isnan(value):
        return "-"
    # Adding zero turns -0.0 into 0.0.
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def p_text(value: float | None) -> str:
    """A p-value to three decimals; never 0."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: Estimate | None) -> str:
    """`+1.2 [-0.4, +2.8]`, in points."""
    if estimate is None:
        return "-"
    low, high = estimate.interval()
    return f"{points(float(estimate.value))} [{points(float(low))}, {points(float(high))}]"


# A cell, a row, a suite in numbers: the mean over seeds and its t interval.
#
# The unit of resampling is the training run: the interval says what another set of seeds would give
# on the same test examples. It compares no two methods.


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean over seeds, 0 to 1; without runs `why` says what happened instead."""

    mean: float = float("nan")
    low: float = float("nan")
    """Ends of the 95 % t interval over seeds; NaN for a single run."""
    high: float = float("nan")
    runs: int = 0
    seeds: int = 0
    """Runs that the other cells of the table have."""
    why: str = "not run"
    images: bool = False
    """Whether the interval speaks of new images too, not of new runs alone."""

    @property
    def text(self) -> str:
        """In percent: `71.2 ± 3.1`, `71.2 (1 run)`, `71.2 ± 3.1 (2 of 3 runs)`, `not run`."""
        if not self.runs:
            return self.why
        mean = f"{100 * self.mean:.1f}"
        if self.runs == 1:
            return f"{mean} (1 run)" if self.seeds == 1 else f"{mean} (1 of {self.seeds} runs)"
        text = f"{mean} ± {50 * (self.high - self.low):.1f}"
        return text if self.runs == self.seeds else f"{text} ({self.runs} of {self.seeds} runs)"


def over_seeds(scores: Float[np.ndarray, " seed"], why: str = "not run") -> Summary:
    """Summarise one score per seed; NaN is a run that is missing and counts for nothing."""
    present = scores[~np.isnan(scores)]
    runs = len(present)
    if not runs:
        return Summary(seeds=len(scores), why=why)
    mean = float(present.mean())
    if runs == 1:
        return Summary(mean=mean, runs=1, seeds=len(scores))
    estimate = Estimate(
        value=np.asarray(mean),
        variance=np.asarray(present.var(ddof=1) / runs),
        nu=np.asarray(runs - 1.0),
        replicates=runs,
    )
    low, high = (float(end) for end in estimate.interval())
    return Summary(mean=mean, low=low, high=high, runs=runs, seeds=len(scores))


def cell(table: ScoreTable, method: int, task: int) -> Summary:
    """One method on one task."""
    return over_seeds(table.values[method, task], _why(table, method, task))


def across(table: ScoreTable, method: int, keep: Bool[np.ndarray, " task"]) -> Summary:
    """The plain mean over some tasks, seed by seed; refused unless all of them ran alike."""
    if method in table.leaky:
        return Summary(why="reads the answers")
    scores = table.values[method, keep]
    if not len(scores):
        return Summary(why="no task")
    complete = int((~np.isnan(scores)).all(axis=1).sum())
    if complete < len(scores):
        return Summary(seeds=len(table.seeds), why=f"{complete} of {len(scores)} tasks")
    return over_seeds(scores.mean(axis=0))


def _why(table: ScoreTable, method: int, task: int) -> str:
    statuses = {record.status for record in table.runs(method, task)}
    return "failed" if "failed" in statuses else "skipped" if "skipped" in statuses else "not run"


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


# A table for people: text with marks, written as Markdown or as LaTeX with booktabs.
#
# Own LaTeX instead of a library's: the bytes then change with no library, and a test checks the
# grammar of every character that a name can hold.


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text of a cell: `best` is bold; `tied` is shaded in LaTeX and italic in Markdown."""

    text: str
    best: bool = False
    tied: bool = False


Entry = str | Marked
GridRow = Mapping[str, Entry]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "–": "--", "—": "---", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "°": r"$^\circ$", "‡": r"\textdaggerdbl{}", "†": r"\textdagger{}", "…": r"\ldots{}",
    "≈": r"$\approx$", "Δ": r"$\Delta$", "µ": r"$\mu$",
}  # fmt: skip
PACKAGES = r"\usepackage{booktabs}, \usepackage[table]{xcolor}"


def markdown_grid(rows: Sequence[GridRow]) -> str:
    """A Markdown table; numbers stay as they were written."""
    if not rows:
        return "Nothing to show.\n"
    shown = [{key: _markdown(value) for key, value in row.items()} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def latex_grid(rows: Sequence[GridRow], caption: str, label: str) -> str:
    """A LaTeX table to paste or to input; all rows share the first one's columns."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [
        f"% needs {PACKAGES}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{_label(label)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        _latex_row([escaped(name) for name in columns]),
        r"\midrule",
        *(_latex_row([_latex(row.get(name, "")) for name in columns]) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a character that LaTeX may not know becomes a question mark."""
    found = "".join(_LATEX.get(letter, letter) for letter in text)
    return "".join(letter if letter.isascii() else "?" for letter in found)


def _markdown(entry: Entry) -> str:
    if isinstance(entry, str):
        return entry.replace("|", "\\|")
    text = entry.text.replace("|", "\\|")
    return f"**{text}**" if entry.best else f"*{text}*" if entry.tied else text


def _latex(entry: Entry) -> str:
    if isinstance(entry, str):
        return escaped(entry)
    text = escaped(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return rf"\cellcolor{{gray!20}}{text}" if entry.tied else text


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket at the start of a row would be read as an argument of the line before.
    first = f"{{}}{cells[0]}" if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _label(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text)


def csv_row(values: Mapping[str, object]) -> Row:
    """Typed values as text for programs: six decimals, lower-case booleans, nothing for None."""
    return {key: _csv_value(value) for key, value in values.items()}


def _csv_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | np.floating | np.ndarray):
        return digits(float(value))
    return str(value)
