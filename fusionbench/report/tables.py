"""Numbers as text, means over seeds, and tables as CSV, Markdown and LaTeX.

Rows hold typed values (numbers, booleans, text); they become text when a table is written.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from tabulate import tabulate

from fusionbench.records.cell import Training, canonical, plain_training
from fusionbench.records.scores import ScoreTable
from fusionbench.records.text import markdown_cell, spreadsheet_cell, visible
from fusionbench.stats.crossed import t_over_seeds
from fusionbench.stats.estimate import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]
"""Column -> value: text, a number, a boolean, or None where there is no value."""


SHARES = frozenset(
    "mean ci_low ci_high chance delta delta_low delta_high mde low high testset_low testset_high"
    .split()
)  # fmt: skip
"""Columns from 0 to 1 that the HTML page shows in percent or points."""
P_VALUES = frozenset(("p", "p_adjusted"))
_SIGNIFICANT = P_VALUES | frozenset(
    "se nu p_baseline p_control p_equivalent p_equivalent_adjusted testset_p testset_smallest_p "
    "new_tasks_p_adjusted latency_ms latency_q1_ms latency_q3_ms latency_over_encoder_ms "
    "latency_over_encoder_q1_ms latency_over_encoder_q3_ms throughput".split()
)
"""Columns with eight significant digits in CSV; all other fractions have six decimals."""


def is_missing(value: object) -> bool:
    """True for None, NaN and empty text."""
    return value is None or value == "" or value != value


def digits(column: str, value: object) -> str:
    """A value as CSV holds it: six decimals or eight significant digits, by column."""
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.8g}" if column in _SIGNIFICANT else f"{round(value, 6) + 0.0:.6f}"
    return str(value)


def csv_row(values: Mapping[str, object]) -> Row:
    """A row with numpy numbers as Python floats."""
    numpy = np.floating | np.ndarray
    return {key: float(v) if isinstance(v, numpy) else v for key, v in values.items()}


def points(value: float | None, *, sign: bool = True) -> str:
    """A difference in points: `+1.2`."""
    if value is None or math.isnan(value):
        return "-"
    # Adding zero turns -0.0 into 0.0.
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def effect_text(value: float | None) -> str:
    """A smallest detectable effect in points; no difference is larger than 100."""
    if value is None or math.isnan(value):
        return "-"
    return "over 100" if value > 1 else points(value, sign=False)


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


# The unit of resampling is the training run: the interval is about other seeds on the same test
# examples and does not compare methods.


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean over seeds, 0 to 1; without runs `why` gives the reason."""

    mean: float = float("nan")
    low: float = float("nan")
    """Ends of the 95 % t interval over seeds; NaN for a single run."""
    high: float = float("nan")
    runs: int = 0
    seeds: int = 0
    """Runs that the other cells of the table have."""
    why: str = "not run"
    images: bool = False
    """True if the interval is for new runs and new images, False for new runs alone."""

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

    @property
    def columns(self) -> Row:
        """`mean`, `ci_low`, `ci_high`, `n_seeds` and `status`."""
        return {
            "mean": self.mean,
            "ci_low": self.low,
            "ci_high": self.high,
            "n_seeds": self.runs,
            "status": "done" if self.runs else self.why,
        }


def over_seeds(scores: Float[np.ndarray, " seed"], why: str = "not run") -> Summary:
    """Mean and 95 % t interval of one score per seed; NaN marks a missing run."""
    present = scores[~np.isnan(scores)]
    runs = len(present)
    if not runs:
        return Summary(seeds=len(scores), why=why)
    mean = float(present.mean())
    if runs == 1:
        return Summary(mean=mean, runs=1, seeds=len(scores))
    low, high = (float(end) for end in t_over_seeds(present).interval())
    return Summary(mean=mean, low=low, high=high, runs=runs, seeds=len(scores))


def cell(table: ScoreTable, method: int, task: int) -> Summary:
    """One method on one task."""
    statuses = {record.status for record in table.runs(method, task)}
    why = next((one for one in ("failed", "diverged", "skipped") if one in statuses), "not run")
    return over_seeds(table.values[method, task], why)


def across(table: ScoreTable, method: int, keep: Bool[np.ndarray, " task"]) -> Summary:
    """The plain mean over some tasks, over the runs that all of them have; without, a reason."""
    if method in table.leaky:
        return Summary(why="reads the answers")
    scores = table.values[method, keep]
    if not len(scores):
        return Summary(why="no task")
    ran = int((~np.isnan(scores)).any(axis=1).sum())
    if ran < len(scores):
        return Summary(seeds=len(table.seeds), why=f"{ran} of {len(scores)} tasks")
    return over_seeds(scores.mean(axis=0), "no run of all tasks")


def suite_mean(table: ScoreTable, method: int) -> Summary:
    """The mean over the suite from chance (0) to all right (1), with a t interval over runs."""
    plain = across(table, method, table.suite)
    if not plain.runs:
        return plain
    chance = np.array([task.chance for task in table.tasks])[table.suite, None]
    return over_seeds(((table.values[method, table.suite] - chance) / (1 - chance)).mean(axis=0))


def aggregates(table: ScoreTable) -> list[tuple[str, Bool[np.ndarray, " task"]]]:
    """The sets of tasks that a mean is taken over: the suite and its groups."""
    groups = sorted({task.group for task in table.tasks if task.counts and task.group})
    found = [("suite", table.suite)]
    for group in groups:
        keep = np.array([task.group == group for task in table.tasks], dtype=np.bool_)
        found.append((group, keep & table.suite))
    return found


def names(table: ScoreTable) -> list[str]:
    """Methods with the one they are identical to: `mema-no_feedback (= penultimate)`."""
    same = table.identical
    return [
        f"{name} (= {table.methods[same[row]]})" if row in same else name
        for row, name in enumerate(table.methods)
    ]


def conditions(table: ScoreTable) -> Row:
    """The columns that distinguish the rows of several conditions."""
    condition = table.condition
    # Two trainings may agree in all three; a table of the track `probe` has no column for them.
    training = {} if condition.training is None else {"training": training_name(condition.training)}
    return {
        "track": condition.track,
        "encoder": condition.encoder,
        "steps": condition.budget.steps,
        **training,
        # All rows of a page have the same columns: this one where some rows need it.
        **({"condition": condition.title} if condition.several else {}),
    }


def training_name(training: Training) -> str:
    """The language model and six digits over everything that decides the training."""
    text = canonical(plain_training(training))
    return f"{training.language} {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def long_row(table: ScoreTable, method: int, column: int, found: Summary) -> Row:
    """One method on one task, with its mean and interval, 0 to 1."""
    task, here = table.tasks[column], table.runs(method, column)
    done = [record for record in here if record.status == "done"]
    parameters = done[0].parameters if done else {}
    parts = ("fusion", "projector", "reader")
    return {
        **conditions(table),
        "method": table.methods[method],
        "task": task.name,
        "group": task.group,
        "metric": task.metric,
        **found.columns,
        "n_examples": task.examples,
        "chance": task.chance,
        **{f"parameters_{part}": parameters.get(part) for part in parts},
        "in_encoder": any(record.in_encoder for record in here),
    }


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text of a cell: `best` is bold; `tied` is shaded in LaTeX and italic in Markdown."""

    text: str
    best: bool = False
    tied: bool = False


Entry = str | int | Marked
GridRow = Mapping[str, Entry]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "–": "--", "—": "---", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "°": r"$^\circ$", "‡": r"\textdaggerdbl{}", "†": r"\textdagger{}", "…": r"\ldots{}",
    "§": r"\S{}", "≈": r"$\approx$", "Δ": r"$\Delta$", "µ": r"$\mu$", "¶": r"\P{}",
}  # fmt: skip
PACKAGES = r"\usepackage{booktabs}, \usepackage{graphicx}, \usepackage[table]{xcolor}"
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Shrinks a table that is wider than the text, and leaves any other as it is."""


def frame(rows: Sequence[Row]) -> "DataFrame":
    """Rows as a data frame; whole numbers and booleans with gaps get nullable types."""
    import pandas as pd

    found = pd.DataFrame(rows, dtype=object)
    for name in found:
        kind = pd.api.types.infer_dtype(found[name], skipna=True)
        gaps = bool(found[name].isna().any())
        dtype = _WITH_GAPS.get(kind) if gaps else None
        column = found[name].infer_objects()
        found[name] = pd.Series(column, dtype=dtype) if dtype else column
    return found


_WITH_GAPS = {"integer": "Int64", "boolean": "boolean", "floating": "float64", "empty": "float64"}


def comma_separated(rows: Sequence[Row]) -> str:
    """CSV with one header line; numbers as in `digits`."""
    import pandas as pd

    if not rows:
        return ""
    texts = [
        {spreadsheet_cell(name): _csv_cell(name, value) for name, value in row.items()}
        for row in rows
    ]
    return pd.DataFrame(texts).to_csv(index=False, lineterminator="\n")


def _csv_cell(column: str, value: object) -> str:
    text = digits(column, value)
    return spreadsheet_cell(text) if isinstance(value, str) else text


def markdown(rows: Sequence[GridRow]) -> str:
    """A Markdown table; all rows have the first one's columns."""
    if not rows:
        return "Nothing to show.\n"
    shown = [{markdown_cell(key): _markdown(value) for key, value in row.items()} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def _markdown(entry: Entry) -> str:
    if not isinstance(entry, Marked):
        return markdown_cell(str(entry))
    text = markdown_cell(entry.text)
    return f"**{text}**" if entry.best else f"*{text}*" if entry.tied else text


def latex_grid(rows: Sequence[GridRow], caption: str, label: str) -> str:
    """A LaTeX table to paste or to input, no wider than the text; all rows have its columns."""
    # Not `DataFrame.to_latex`: it cannot shade a cell, passes on characters that LaTeX does not
    # know, and reads a row that starts with a bracket as an argument of the line above.
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [
        f"% needs {PACKAGES}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{_label(label)}}}",
        _FIT,
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        _latex_row([escaped(name) for name in columns]),
        r"\midrule",
        *(_latex_row([_latex(row.get(name, "")) for name in columns]) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        "}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it; other characters than ASCII and `_LATEX` become `?`."""
    found = "".join(_LATEX.get(letter, letter) for letter in visible(text))
    return "".join(letter if letter.isascii() else "?" for letter in found)


def _latex(entry: Entry) -> str:
    if not isinstance(entry, Marked):
        return escaped(str(entry))
    text = escaped(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return rf"\cellcolor{{gray!20}}{text}" if entry.tied else text


def _latex_row(cells: Sequence[str]) -> str:
    first = f"{{}}{cells[0]}" if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _label(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text)
