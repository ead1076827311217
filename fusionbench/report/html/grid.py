"""Tables of the HTML page: a text to read, a number to sort by, details on hover."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

import pandas as pd
from markupsafe import Markup

from fusionbench.report.tables import P_VALUES, SHARES, Row, digits, effect_text, is_missing

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
    bar: Markup = Markup()  # noqa: RUF009  (immutable)
    """The number as a drawing, in front of the text."""

    @property
    def marks(self) -> str:
        """CSS classes."""
        known = {"best": self.best, "tied": self.tied, "words": len(self.text) > _LONG_TEXT}
        return " ".join(name for name, on in known.items() if on)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """One column: its name and, where columns are grouped, its group."""

    text: str
    group: str = ""
    note: str = ""
    """Shown small, under the name."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table with its heading."""

    id: str
    title: str
    heads: Sequence[Heading]
    rows: Sequence[Sequence[GridCell]]
    note: str = ""

    @property
    def groups(self) -> list[str]:
        """Groups of columns, for the choice above the table."""
        return sorted({head.group for head in self.heads if head.group})


def plain(name: str, title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Rows as they are, numbers shortened."""
    heads = [Heading(text=key.replace("_", " ")) for key in (rows[0] if rows else ())]
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


def standings(
    name: str,
    title: str,
    rows: Sequence[Row],
    note: str = "",
    *,
    marks: Mapping[str, str] | None = None,
    times: Mapping[str, str] | None = None,
    baseline: str = "",
) -> Iterator[Grid]:
    """One table per condition from the rows of `tables/summary`: the suite, then its groups.

    `marks` and `times`: warnings and time over the encoder, by the name of the method.
    """
    table = pd.DataFrame(rows, dtype=object)
    facts = [one for one in _CONDITION if one in table]
    for number, (condition, here) in enumerate(
        table.groupby(facts, sort=False, dropna=False), start=1
    ):
        track, encoder, steps, *training = condition
        parts = [str(track), str(encoder), f"{steps} steps" if steps else ""]
        parts += [str(one) for one in training if not is_missing(one)]
        names = list(here["aggregate"].unique())
        against = f"minus {baseline or 'the baseline'}, points"
        heads = [
            Heading(text="method"), Heading(text=names[0], note="% chance to perfect"),
            Heading(text="difference", note=against),
            Heading(text="verdict", note="of the difference"), Heading(text="marks"),
            *(Heading(text=one, note="% chance to perfect") for one in names[1:]),
            Heading(text="added", note="parameters over the whole baseline"),
            Heading(text="time", note="over the encoder's own"),
        ]  # fmt: skip
        by_method: dict[str, list[Row]] = {}
        for row in here.to_dict("records"):
            by_method.setdefault(str(row["method"]), []).append({str(k): v for k, v in row.items()})
        scale = _scale([one[0] for one in by_method.values()])
        yield Grid(
            id=f"{name}-{number}",
            title=f"{title}: {', '.join(filter(None, parts))}",
            heads=heads,
            rows=[_standing(one, marks or {}, times or {}, scale) for one in by_method.values()],
            note=note,
        )


def _standing(
    rows: Sequence[Row],
    marks: Mapping[str, str],
    times: Mapping[str, str],
    scale: tuple[float, float],
) -> list[GridCell]:
    """The cells of one method: the first row is the suite's."""
    suite, *groups = rows
    name = str(suite["method"])
    marked = "; ".join(filter(None, (suite["role"], marks.get(name, ""))))
    return [
        GridCell(text=name),
        _mean(suite),
        _difference(suite, "delta", "delta_low", "delta_high", scale),
        GridCell(text=suite["verdict"] or ""),
        GridCell(text=marked),
        *(_mean(row) for row in groups),
        GridCell(text=suite["added"], value=_first_number(suite["added"])),
        GridCell(text=times.get(name, ""), value=_first_number(times.get(name, ""))),
    ]


def _first_number(text: str) -> float | None:
    """`1,024 to 2,048` -> 1024, to sort by; None without a number."""
    try:
        return float(text.split(" ")[0].replace(",", ""))
    except ValueError:
        return None


def _difference(row: Row, value: str, low: str, high: str, scale: tuple[float, float]) -> GridCell:
    """`+1.2 [-0.4, +2.8]` with its interval as a bar."""
    if is_missing(row.get(value)):
        return GridCell(text="")
    text = f"{100 * row[value] + 0.0:+.1f}"
    if is_missing(row.get(low)) or is_missing(row.get(high)):
        return GridCell(text=text, value=_sort_key("delta", row[value]))
    ends = f"[{100 * row[low] + 0.0:+.1f}, {100 * row[high] + 0.0:+.1f}]"
    return GridCell(
        text=f"{text} {ends}",
        value=_sort_key("delta", row[value]),
        bar=_bar(row[value], row[low], row[high], scale),
    )


def _scale(
    rows: Sequence[Row], low: str = "delta_low", high: str = "delta_high"
) -> tuple[float, float]:
    """The ends of the axis that all bars of a table share; it always shows 0."""
    known = [row[key] for row in rows for key in (low, high) if not is_missing(row.get(key))]
    return min([0.0, *known]), max([0.0, *known])


_BAR = 110
"""Width of a bar, in pixels."""


def _bar(value: float, low: float, high: float, scale: tuple[float, float]) -> Markup:
    """An interval with its value and the line of no difference."""
    span = (scale[1] - scale[0]) or 1.0
    x = [round(1 + (_BAR - 2) * (one - scale[0]) / span, 1) for one in (0.0, low, high, value)]
    side = "above" if low > 0 else "below" if high < 0 else "open"
    return Markup(  # noqa: S704  (numbers only)
        f'<svg class="bar {side}" width="{_BAR}" height="12" aria-hidden="true">'
        f'<path class="zero" d="M{x[0]} 0V12"/><path d="M{x[1]} 6H{x[2]}"/>'
        f'<circle cx="{x[3]}" cy="6" r="3"/></svg>'
    )


def differences(name: str, title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Planned comparisons, then all others on the suite, from the rows of `tables/contrasts`."""
    wanted = [row for row in rows if row["kind"] != "exploratory" or row["scope"] == "suite"]
    kinds = ("planned", "followup", "exploratory")

    def place(row: Row) -> tuple[int, float]:
        return kinds.index(row["kind"]), -(0.0 if is_missing(row["delta"]) else row["delta"])

    scale = _scale(wanted, "low", "high")
    of_control = _scale(wanted, "control_low", "control_high")
    conditions = [key for key in _CONDITION if len({str(row.get(key)) for row in wanted}) > 1]
    heads = [
        Heading(text="method"), Heading(text="minus", note="compared with"), Heading(text="on"),
        Heading(text="difference", note="points"), Heading(text="verdict"), Heading(text="kind"),
        Heading(text="p", note="corrected"), Heading(text="MDE", note="points"),
        Heading(text="control"), Heading(text="minus its control", note="points"),
        *(Heading(text=key) for key in conditions),
    ]  # fmt: skip
    return Grid(
        id=name,
        title=title,
        heads=heads,
        rows=[_compared(row, scale, of_control, conditions) for row in sorted(wanted, key=place)],
        note=note,
    )


def _compared(
    row: Row,
    scale: tuple[float, float],
    of_control: tuple[float, float],
    conditions: Sequence[str],
) -> list[GridCell]:
    p, mde = row["p_adjusted"], row["mde"]
    return [
        GridCell(text=str(row["method"])),
        GridCell(text=str(row["baseline"])),
        GridCell(text=str(row["name"])),
        _difference(row, "delta", "low", "high", scale),
        GridCell(text=str(row["verdict"] or row.get("reason") or "")),
        GridCell(text=str(row["kind"])),
        GridCell(text=shorter("p", p), value=_sort_key("p", p)),
        GridCell(text="" if is_missing(mde) else effect_text(mde), value=_sort_key("mde", mde)),
        GridCell(text=str(row["control"] or "")),
        _difference(row, "control_delta", "control_low", "control_high", of_control),
        *(GridCell(text=str(row.get(key, ""))) for key in conditions),
    ]


def costs(
    name: str, title: str, rows: Sequence[Row], note: str = "", *, baseline: str = ""
) -> Iterator[Grid]:
    """Added parameters, FLOPs, time and memory by condition, from the rows of `tables/cost`."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        facts = tuple("" if is_missing(row.get(key)) else str(row[key]) for key in _CONDITION)
        groups.setdefault(facts, []).append(row)
    for number, (facts, here) in enumerate(groups.items(), start=1):
        track, encoder, steps, *others = facts
        # Rows without steps were counted for a shape: nothing was trained.
        whole = f"over {baseline or 'the baseline'}" if steps else "over the projector of one layer"
        heads = [
            Heading(text="method"), Heading(text="parameters added", note=whole),
            Heading(text="FLOPs", note="one image, over the encoder"),
            Heading(text="ms a batch", note="over the encoder [quartiles]"),
            Heading(text="images/s"), Heading(text="memory, MiB", note="peak, over the encoder"),
            Heading(text="trains"), Heading(text="measured as"),
        ]  # fmt: skip
        parts = [track, encoder, f"{steps} steps" if steps else "shape only", *others]
        yield Grid(
            id=name if number == 1 else f"{name}-{number}",
            title=f"{title}: {', '.join(filter(None, parts))}",
            heads=heads,
            note=note,
            rows=[_cost(row) for row in here],
        )


def _cost(row: Row) -> list[GridCell]:
    """The cells of one measurement; a measurement that was not made is empty."""
    over, memory = row.get("latency_over_encoder_ms"), row.get("peak_memory_over_encoder_bytes")
    quartiles = (row.get("latency_over_encoder_q1_ms"), row.get("latency_over_encoder_q3_ms"))
    spread = "" if is_missing(over) else f"{over:.2f} [{quartiles[0]:.2f}, {quartiles[1]:.2f}]"
    ends = [row.get("added_min"), row.get("added_max")]
    added = " to ".join(dict.fromkeys(f"{one:,}" for one in ends if not is_missing(one)))
    how = [row.get("mode"), row.get("device"), row.get("dtype")]
    how += [] if is_missing(row.get("batch")) else [f"batch {row['batch']}"]
    speed = row.get("throughput")
    mebibytes = None if memory is None or is_missing(memory) else memory / 2**20
    return [
        GridCell(text=str(row["method"])),
        GridCell(text=added, value=_sort_key("added", ends[0])),
        GridCell(
            text=shorter("flops", row.get("flops_over_encoder")),
            value=_sort_key("flops", row.get("flops_over_encoder")),
        ),
        GridCell(text=spread, value=_sort_key("latency_ms", over)),
        GridCell(
            text="" if is_missing(speed) else f"{speed:,.0f}", value=_sort_key("throughput", speed)
        ),
        GridCell(
            text="" if mebibytes is None else f"{mebibytes:,.1f}",
            value=_sort_key("memory", mebibytes),
        ),
        GridCell(text="on cached states" if row.get("cacheable") else "in the encoder"),
        GridCell(text=", ".join(str(one) for one in how if not is_missing(one))),
    ]


def _mean(row: Row) -> GridCell:
    """A chance-corrected mean with its interval."""
    return GridCell(
        text=row["text"],
        value=_sort_key("mean", row["score"]),
        best=bool(row.get("best")),
        tied=bool(row.get("tied")),
    )


def _pivot(table: pd.DataFrame, across: str) -> tuple[list[Heading], list[list[GridCell]]]:
    rows = [dict(zip(table.columns, values, strict=True)) for values in table.to_numpy()]
    scores = [_score(row) for row in rows]
    table = table.assign(cell=pd.Series(scores, index=table.index, dtype=object))
    groups = dict(zip(table[across], table.get("group", [""] * len(table)), strict=True))
    order = sorted(groups, key=groups.__getitem__)
    cells = table.pivot(index="method", columns=across, values="cell")
    cells = cells.reindex(index=table["method"].unique(), columns=order)
    chances = {row[across]: _chance(row) for row in reversed(rows)}
    heads = [
        Heading(text="method"),
        *(Heading(text=name, group=groups[name], note=chances[name]) for name in order),
    ]
    missing = GridCell(text="not run")
    return heads, [
        [GridCell(text=method), *(one if isinstance(one, GridCell) else missing for one in row)]
        for method, *row in cells.itertuples(name=None)
    ]


def _chance(row: Row) -> str:
    return "" if is_missing(row.get("chance")) else f"chance {100 * row['chance']:.0f}"


def _score(row: Row) -> GridCell:
    """`71.2 ± 3.1`, with everything else in its details."""
    mean, low, high = (row.get(name, math.nan) for name in ("mean", "ci_low", "ci_high"))
    if is_missing(mean):
        return GridCell(text=row.get("status") or row.get("text") or "not run")
    half = "" if is_missing(low) else f" ± {50 * (high - low):.1f}"
    return GridCell(
        text=f"{100 * mean:.1f}{half}",
        value=_sort_key("mean", mean),
        details=details(row),
        best=bool(row.get("best")),
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
    if not is_missing(known.get("mde")):
        known["mde"] = effect_text(known["mde"])
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
