"""Tables of the HTML page: a text to read, a number to sort by, details on hover."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

import pandas as pd

from fusionbench.report.tables import P_VALUES, SHARES, Row, digits, is_missing

_DETAILS: Mapping[str, str] = {
    "status": "status",
    "n_seeds": "runs (seeds)",
    "n_examples": "test examples",
    "n_tasks": "tasks",
    "mean": "mean, %",
    "interval": "95 % interval, %",
    "chance": "chance, %",
    "tokens": "tokens that the reader gets",
    "delta": "difference, points",
    "delta_interval": "its 95 % interval",
    "p": "p",
    "p_adjusted": "p, corrected",
    "verdict": "verdict",
    "mde": "smallest effect it can find (MDE), points",
}
_CONDITION = ("track", "encoder", "steps", "training", "condition")
_FEWEST_RUNS = 4
_LONG_TEXT = 40


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One entry of a table."""

    text: str
    value: float | None = None
    """Sort key; None sorts by the text."""
    details: str = ""
    best: bool = False
    tied: bool = False
    """True in the set of methods that contains the best one."""

    @property
    def marks(self) -> str:
        """CSS classes."""
        known = {"best": self.best, "tied": self.tied, "words": len(self.text) > _LONG_TEXT}
        return " ".join(name for name, on in known.items() if on)


@dataclass(frozen=True, kw_only=True)
class Head:
    """One column: its name and, where columns are grouped, its group."""

    text: str
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table with its heading."""

    id: str
    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[GridCell]]
    note: str = ""

    @property
    def groups(self) -> list[str]:
        """Groups of columns, for the choice above the table."""
        return sorted({head.group for head in self.heads if head.group})


def plain(name: str, title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Rows as they are, numbers shortened."""
    heads = [Head(text=key.replace("_", " ")) for key in (rows[0] if rows else ())]
    cells = [
        [
            GridCell(text=shorter(key, value), value=_sort_key(key, value))
            for key, value in row.items()
        ]
        for row in rows
    ]
    return Grid(id=name, title=title, heads=heads, rows=cells, note=note)


def pivots(
    name: str, title: str, rows: Sequence[Row], across: str, note: str = ""
) -> Iterator[Grid]:
    """One table per condition: methods down, the values of the column `across` along."""
    table = pd.DataFrame(rows, dtype=object)
    if "metric" in table:
        # A named metric is a column of its own, after its task's headline metric.
        named = table["metric"] != table.groupby(across)["metric"].transform("first")
        names = table[across].str.cat(table["metric"].astype(str), sep=": ")
        table[across] = table[across].where(~named, names)
    by_condition = table.groupby(
        [name for name in _CONDITION if name in table], sort=False, dropna=False
    )
    for number, (condition, here) in enumerate(by_condition, start=1):
        track, encoder, steps, *training = condition
        facts = [str(track), str(encoder), f"{steps} steps" if steps else ""]
        facts += [str(one) for one in training if not is_missing(one)]
        heads, cells = _pivot(here, across)
        heading = f"{title}: {', '.join(filter(None, facts))}"
        yield Grid(id=f"{name}-{number}", title=heading, heads=heads, rows=cells, note=note)


def standings(name: str, title: str, rows: Sequence[Row], note: str = "") -> Iterator[Grid]:
    """One table per condition from the rows of `tables/summary`: the suite, then its groups."""
    table = pd.DataFrame(rows, dtype=object)
    facts = [one for one in _CONDITION if one in table]
    for number, (condition, here) in enumerate(
        table.groupby(facts, sort=False, dropna=False), start=1
    ):
        track, encoder, steps, *training = condition
        parts = [str(track), str(encoder), f"{steps} steps" if steps else ""]
        parts += [str(one) for one in training if not is_missing(one)]
        names = list(here["aggregate"].unique())
        heads = ["method", "role", names[0], "difference", "verdict", *names[1:], "added"]
        by_method: dict[str, list[Row]] = {}
        for row in here.to_dict("records"):
            by_method.setdefault(str(row["method"]), []).append({str(k): v for k, v in row.items()})
        yield Grid(
            id=f"{name}-{number}",
            title=f"{title}: {', '.join(filter(None, parts))}",
            heads=[Head(text=head) for head in heads],
            rows=[_standing(one) for one in by_method.values()],
            note=note,
        )


def _standing(rows: Sequence[Row]) -> list[GridCell]:
    """The cells of one method: the first row is the suite's."""
    suite, *groups = rows
    ends = _ends(suite, "delta_low", "delta_high")
    delta = "" if is_missing(suite["delta"]) else f"{100 * suite['delta']:+.1f}"
    difference = GridCell(
        text=f"{delta} ({ends})" if ends else delta, value=_sort_key("delta", suite["delta"])
    )
    return [
        GridCell(text=suite["method"]),
        GridCell(text=suite["role"]),
        _mean(suite),
        difference,
        GridCell(text=suite["verdict"] or ""),
        *(_mean(row) for row in groups),
        GridCell(text=suite["added"]),
    ]


def _mean(row: Row) -> GridCell:
    """A chance-corrected mean with its interval."""
    return GridCell(
        text=row["text"],
        value=_sort_key("mean", row["score"]),
        best=bool(row.get("best")),
        tied=bool(row.get("tied")),
    )


def _pivot(table: pd.DataFrame, across: str) -> tuple[list[Head], list[list[GridCell]]]:
    best = table["mean"].astype(float).groupby(table[across]).transform("max")
    rows = [dict(zip(table.columns, values, strict=True)) for values in table.to_numpy()]
    scores = [_score(row, top) for row, top in zip(rows, best, strict=True)]
    table = table.assign(cell=pd.Series(scores, index=table.index, dtype=object))
    groups = dict(zip(table[across], table.get("group", [""] * len(table)), strict=True))
    order = sorted(groups, key=groups.__getitem__)
    cells = table.pivot(index="method", columns=across, values="cell")
    cells = cells.reindex(index=table["method"].unique(), columns=order)
    heads = [Head(text="method"), *(Head(text=name, group=groups[name]) for name in order)]
    missing = GridCell(text="not run")
    return heads, [
        [GridCell(text=method), *(one if isinstance(one, GridCell) else missing for one in row)]
        for method, *row in cells.itertuples(name=None)
    ]


def _score(row: Row, best: float) -> GridCell:
    """`71.2 ± 3.1`, with everything else in its details."""
    mean, low, high = (row.get(name, math.nan) for name in ("mean", "ci_low", "ci_high"))
    if is_missing(mean):
        return GridCell(text=row.get("status") or row.get("text") or "not run")
    half = "" if is_missing(low) else f" ± {50 * (high - low):.1f}"
    return GridCell(
        text=f"{100 * mean:.1f}{half}",
        value=_sort_key("mean", mean),
        details=details(row),
        best=bool(row["best"]) if "best" in row else mean == best,
        tied=bool(row.get("tied")),
    )


def details(row: Row) -> str:
    """Lines shown on hover: n, interval, difference, p and MDE where they are known."""
    known = dict(row)
    if row.get("status") == "done":
        del known["status"]
    over = f" ({row['interval']})" if row.get("interval") else ""
    ends = _ends(row, "ci_low", "ci_high")
    known["interval"] = ends and ends + over
    known["delta_interval"] = _ends(row, "delta_low", "delta_high")
    lines = [
        f"{title}: {shorter(key, known[key])}"
        for key, title in _DETAILS.items()
        if not is_missing(known.get(key))
    ]
    if is_missing(row.get("p")) and row.get("n_seeds", _FEWEST_RUNS) < _FEWEST_RUNS:
        lines.append(f"p and MDE: none, a test needs at least {_FEWEST_RUNS} runs")
    return "\n".join(lines)


def _ends(row: Row, low: str, high: str) -> str:
    if is_missing(row.get(low)) or is_missing(row.get(high)):
        return ""
    return f"{shorter(low, row[low])} to {shorter(high, row[high])}"


def shorter(key: str, value: object) -> str:
    """Shares in percent, p with two digits, large numbers with commas, all else as in the CSV."""
    if is_missing(value) or not isinstance(value, int | float) or isinstance(value, bool):
        return digits(key, value)
    if key in SHARES:
        # Adding zero turns -0.0 into 0.0.
        return f"{round(100 * value, 1) + 0.0:.1f}"
    if key in P_VALUES:
        return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
    large = abs(value) >= 10_000 and value == int(value)
    return f"{value:,.0f}" if large else digits(key, value)


def _sort_key(key: str, value: object) -> float | None:
    """A number as rounded in the CSV; None for anything else."""
    if is_missing(value) or not isinstance(value, Number) or isinstance(value, bool):
        return None
    return float(digits(key, value))
