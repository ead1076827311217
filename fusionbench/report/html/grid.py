"""Tables as a page shows them: a text to read, a number to sort by, details to hover over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusionbench.report.tables import Row

_SHARES = {"mean", "ci_low", "ci_high", "chance", "delta", "delta_low", "delta_high", "mde", "low",
           "high", "testset_low", "testset_high"}  # fmt: skip
_DETAILS: Mapping[str, str] = {
    "status": "status",
    "n_seeds": "runs (seeds)",
    "n_examples": "test examples",
    "n_tasks": "tasks",
    "mean": "mean, %",
    "interval": "95 % interval, %",
    "chance": "chance, %",
    "delta": "difference, points",
    "delta_interval": "its 95 % interval",
    "p": "p",
    "p_adjusted": "p, corrected",
    "verdict": "verdict",
    "mde": "smallest effect it can find (MDE), points",
}
_FEWEST_RUNS = 4
_LONG_TEXT = 40


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table."""

    text: str
    value: float | None = None
    """What it is sorted by; None sorts as text."""
    details: str = ""
    best: bool = False
    tied: bool = False
    """True in the set of methods that hold the best one."""

    @property
    def marks(self) -> str:
        """Classes for the page's style."""
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
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def groups(self) -> list[str]:
        """Groups of columns, for the choice above the table."""
        return sorted({head.group for head in self.heads if head.group})


def plain(name: str, title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Rows as they are, numbers shortened."""
    heads = [Head(text=key.replace("_", " ")) for key in (rows[0] if rows else ())]
    cells = [[_plain(key, text) for key, text in row.items()] for row in rows]
    return Grid(id=name, title=title, heads=heads, rows=cells, note=note)


def pivots(name: str, title: str, rows: Sequence[Row], across: str, note: str = "") -> list[Grid]:
    """One table per condition, methods down and `across` (`task`, `aggregate`) along."""
    grids = []
    for number, (condition, here) in enumerate(_by_condition(rows).items(), start=1):
        heading = f"{title}: {condition}" if condition else title
        grid = _pivot(here, across)
        grids.append(
            Grid(id=f"{name}-{number}", title=heading, heads=grid[0], rows=grid[1], note=note)
        )
    return grids


def _by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        facts = [row.get("track", ""), row.get("encoder", ""),
                 f"{row['steps']} steps" if row.get("steps") else ""]  # fmt: skip
        found.setdefault(", ".join(fact for fact in facts if fact), []).append(row)
    return found


def _pivot(rows: Sequence[Row], across: str) -> tuple[list[Head], list[list[Cell]]]:
    columns = {row[across]: row.get("group", "") for row in rows}
    order = sorted(columns, key=lambda name: (columns[name], list(columns).index(name)))
    by_place = {(row["method"], row[across]): row for row in rows}
    best = {name: _best(rows, across, name) for name in order}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = [
        [Cell(text=method), *(_score(by_place.get((method, name)), best[name]) for name in order)]
        for method in methods
    ]
    return [Head(text="method"), *(Head(text=name, group=columns[name]) for name in order)], cells


def _best(rows: Sequence[Row], across: str, name: str) -> float:
    means = [_number(row["mean"]) for row in rows if row[across] == name]
    return max((mean for mean in means if mean is not None), default=float("nan"))


def _score(row: Row | None, best: float) -> Cell:
    """`71.2 ± 3.1`, with everything else in its details."""
    mean = _number(row["mean"]) if row else None
    if row is None or mean is None:
        return Cell(text=(row or {}).get("status") or (row or {}).get("text") or "not run")
    low, high = _number(row.get("ci_low", "")), _number(row.get("ci_high", ""))
    text = f"{100 * mean:.1f}"
    if low is not None and high is not None:
        text += f" ± {50 * (high - low):.1f}"
    return Cell(
        text=text,
        value=mean,
        details=details(row),
        best=row["best"] == "true" if "best" in row else mean == best,
        tied=row.get("tied", "") == "true",
    )


def details(row: Row) -> str:
    """Lines of what hovering shows: n, interval, difference, p and MDE where they are known."""
    known = dict(row)
    if row.get("status") == "done":
        del known["status"]
    over = f" ({row['interval']})" if row.get("interval") else ""
    ends = _ends(row, "ci_low", "ci_high")
    known["interval"] = ends and ends + over
    known["delta_interval"] = _ends(row, "delta_low", "delta_high")
    lines = [
        f"{title}: {shorter(key, known[key])}" for key, title in _DETAILS.items() if known.get(key)
    ]
    runs = _number(row.get("n_seeds", ""))
    if not row.get("p") and runs is not None and runs < _FEWEST_RUNS:
        lines.append(f"p and MDE: none, a test needs at least {_FEWEST_RUNS} runs")
    return "\n".join(lines)


def _ends(row: Row, low: str, high: str) -> str:
    if not row.get(low) or not row.get(high):
        return ""
    return f"{shorter(low, row[low])} to {shorter(high, row[high])}"


def _plain(key: str, text: str) -> Cell:
    return Cell(text=shorter(key, text), value=_number(text))


def shorter(key: str, text: str) -> str:
    """A number as a reader wants it: shares in percent, p with two digits, else as it came."""
    value = _number(text)
    if value is None:
        return text
    if key in _SHARES:
        return f"{100 * value:.1f}"
    if key in ("p", "p_adjusted"):
        return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10_000 else text


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
