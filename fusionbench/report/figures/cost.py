"""Score against cost, with the Pareto front: parameters, FLOPs and latency."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.records.cost import CostRecord
from fusionbench.report.cost_table import COUNTED, profiled, profiles_of
from fusionbench.report.figures.panels import (
    LABEL_INCHES,
    FigureData,
    encoder_handles,
    label_column,
    legend,
)
from fusionbench.report.figures.style import (
    GRID,
    GUIDE,
    IN_ENCODER,
    INK,
    ON_FEATURES,
    Drawing,
)
from fusionbench.report.tables import suite_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARAMETERS = {
    "parameters_fusion": ("parameters of the fusion", ("fusion",)),
    "parameters_fusion_projector": ("fusion and projector", ("fusion", "projector")),
}
_MEASURED = {
    "flops_over_encoder": "FLOPs over the encoder",
    # Timed in turn with the encoder, so that slow drifts of the machine cancel.
    "latency_over_encoder_ms": "ms a batch over the encoder",
}
_COLUMNS = ["cost", "method", "value", "q1", "q3", "score", "ci_low", "ci_high", "on_front"]
_READING = """\
Up is better, left is cheaper. The stepped line is the Pareto front: for a method on it (filled), no
other one is at least as good and as cheap, and better in one of the two. It joins means: the grey
bar is the median 95 % interval over runs, and a method within that distance of the front may
belong to it. Horizontal lines at marks are quartiles of measured times. Names are in the order of
the score, which counts every task the same, from chance (0) to all right (100)."""
_MOST_TICKS = 6
_MOST_NAMES = 25
"""With more methods, those on a front, the planned ones and the baseline are named."""

Costs = Float[np.ndarray, " method"]


def draw_cost(data: FigureData) -> Drawing | None:
    """A panel per measure of cost, the mean over the suite up the side; None below two methods."""
    rows = _costs(data)
    methods = rows["method"].nunique()
    if methods < 2:
        return None
    left = len(data.table.methods) - methods
    note = (
        "" if rows["named"].all() else " Named are the fronts, the planned ones and the baseline."
    )
    note += (
        f" Left out, because some tasks did not run: {left} of {left + methods}." if left else ""
    )
    return Drawing(
        name="cost",
        title="Score against cost",
        reading=_READING + note,
        figure=_figure(rows),
        rows=rows[_COLUMNS],
    )


def _costs(data: FigureData) -> "pd.DataFrame":
    """One row per measure of cost and method: cost with quartiles, score with its interval."""
    import pandas as pd

    table = data.table
    scores = {row: suite_mean(table, row) for row in range(len(table.methods))}
    scores = {row: summary for row, summary in scores.items() if summary.runs}
    if not scores:
        return pd.DataFrame(columns=_COLUMNS)
    start = pd.DataFrame({
        "method": [data.labels[row] for row in scores],
        "in_encoder": [data.in_encoder[row] for row in scores],
        "score": [one.mean for one in scores.values()],
        "ci_low": [one.low for one in scores.values()],
        "ci_high": [one.high for one in scores.values()],
    })  # fmt: skip
    frames = [
        start.assign(cost=key, title=title, value=value, q1=q1, q3=q3)
        for key, title, (value, q1, q3) in _axes(data, list(scores))
        if not np.isnan(value).all()
    ]
    for frame in frames:
        frame["on_front"] = pareto(frame["value"].to_numpy(), frame["score"].to_numpy())
    found = pd.concat(frames, ignore_index=True)
    front = set(found.loc[found["on_front"], "method"])
    wanted = {data.labels[row] for row in scores if table.methods[row] in _declared(data)}
    named = front | wanted if len(scores) > _MOST_NAMES else set(start["method"])
    return found.assign(named=found["method"].isin(named))


def _declared(data: FigureData) -> set[str]:
    """The baseline and the methods of planned contrasts."""
    return {data.baseline, *data.planned}


def _axes(
    data: FigureData, rows: Sequence[int]
) -> Iterator[tuple[str, str, Float[np.ndarray, "3 method"]]]:
    """(key, title, [median, q1, q3]) of each measure of cost; NaN where it was not measured."""
    for key, (title, parts) in _PARAMETERS.items():
        counts = [_parameters(data, row, parts) for row in rows]
        yield key, title, np.tile(counts, (3, 1))
    here = [one for row in rows for one in profiles_of(data.profiles, data.table, row)]
    of_rows = [profiled(data.table.row(row)[0]) for row in rows]
    for key, title in _MEASURED.items():
        conditions, profiles = comparable_profiles(here, key)
        found = [getattr(profiles.get(name), key, None) for name in of_rows]
        spreads = np.array([_spread(value) for value in found]).reshape(-1, 3).T
        yield key, f"{title}\n({conditions})", spreads


def _parameters(data: FigureData, row: int, parts: Sequence[str]) -> float:
    """Median over tasks, because the width of the projector may depend on the task."""
    done = [record for record in data.table.row(row) if record.status == "done"]
    return float(np.median([sum(one.parameters.get(part, 0) for part in parts) for one in done]))


def _spread(value: object) -> tuple[float, float, float]:
    """Median and quartiles of a measured time; a counted number has no quartiles."""
    if isinstance(value, int | float):
        return float(value), np.nan, np.nan
    found = [getattr(value, end, np.nan) for end in ("median", "q1", "q3")]
    return found[0], found[1], found[2]


def comparable_profiles(
    profiles: Sequence[CostRecord], key: str
) -> tuple[str, Mapping[tuple[str, int], CostRecord]]:
    """Conditions as text, and the profiles with the measure `key` that share them.

    Each stands under label and version of its method. Of several sets the largest is taken,
    inference before training. FLOPs are counted and times measured, so that the two may come from
    different conditions.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, int], CostRecord]] = defaultdict(dict)
    for profile in profiles:
        if getattr(profile, key) is not None:
            name = profile.label, profile.conditions.method_version
            groups[_conditions(profile)][name] = profile
    if not groups:
        return "", {}
    best = min(groups, key=lambda one: (one[0] == "train", -len(groups[one]), one))
    mode, device, batch, *_ = best
    return ("counted" if device == COUNTED else f"{mode}, {device}, batch {batch}"), groups[best]


def _conditions(profile: CostRecord) -> tuple[str, ...]:
    """Everything that must be equal for two costs to be compared."""
    facts = profile.conditions
    values = (facts.mode, facts.device, facts.batch, facts.dtype, facts.image_size, facts.width,
              facts.compile, facts.threads, facts.language_model, facts.weights)  # fmt: skip
    return tuple(str(value) for value in values)


def pareto(
    cost: Float[np.ndarray, " method"], score: Float[np.ndarray, " method"]
) -> Bool[np.ndarray, " method"]:
    """Methods that no other one equals or beats in both and beats in one; False for NaN."""
    known = ~(np.isnan(cost) | np.isnan(score))
    no_worse = (cost[:, None] <= cost) & (score[:, None] >= score)
    better = (cost[:, None] < cost) | (score[:, None] > score)
    beaten = (no_worse & better & known[:, None]).any(axis=0)
    return np.asarray(known & ~beaten)


def _figure(rows: "pd.DataFrame") -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = [group for _, group in rows.groupby("cost", sort=False)]
    named = groups[0][groups[0]["named"]]
    inches = max(2.6, LABEL_INCHES * len(named))
    width = 3.2 if len(groups) < 3 else 2.3
    figure = Figure(figsize=(0.6 + width * len(groups) + 1.6, inches + 0.6), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        _panel(panel, group)
    panels[0].set_ylabel("mean over the suite, % from chance to all right")
    scores = 100 * groups[0]["score"].to_numpy()
    _set_heights(panels[0], scores, 50 * (groups[0]["ci_high"] - groups[0]["ci_low"]).median())
    label_column(panels[-1], 100 * named["score"].to_numpy(), list(named["method"]), inches)
    for panel in panels:
        panel.tick_params(axis="y", left=False)
    front = Line2D([], [], color=INK, linewidth=0.9, label="Pareto front (filled)")
    legend(figure, [*encoder_handles(), front])
    return figure


def _panel(panel: "Axes", rows: "pd.DataFrame") -> None:
    rows = rows.assign(score=100 * rows["score"])
    set_cost_axis(panel, rows["value"].to_numpy())
    limits = panel.get_xlim()
    front = rows[rows["on_front"]].sort_values(["value", "score"])
    panel.step(front["value"], front["score"], where="post", color=INK, linewidth=0.9, zorder=1)
    for (inside, filled), here in rows.groupby(["in_encoder", "on_front"]):
        color, marker = (IN_ENCODER, "^") if inside else (ON_FEATURES, "o")
        panel.hlines(here["score"], here["q1"], here["q3"], colors=color, linewidth=0.7)
        panel.plot(here["value"], here["score"], marker, markersize=4.5, color=color,
                   markerfacecolor=color if filled else "none", linestyle="")  # fmt: skip
    named = rows[rows["named"]]
    panel.hlines(named["score"], named["value"], limits[1], colors=GRID, linewidth=0.5, zorder=0)
    panel.set_xlim(limits)
    panel.set_xlabel(rows["title"].iloc[0])


def _set_heights(panel: "Axes", scores: Float[np.ndarray, " method"], half: float) -> None:
    """Limits that hold all scores and, at the left, a bar of the median interval."""
    middle = float(scores.min() + scores.max()) / 2
    half = float(np.nan_to_num(half))
    reach = 1.06 * max(float(np.ptp(scores)) / 2, half, 0.5)
    panel.set_ylim(middle - reach, middle + reach)
    panel.plot([0.02, 0.02], [middle - half, middle + half], color=GUIDE, linewidth=3,
               alpha=0.5, transform=panel.get_yaxis_transform(), solid_capstyle="butt")  # fmt: skip


def set_cost_axis(panel: "Axes", cost: Costs) -> None:
    """Set scale, limits and ticks: powers of ten, with 0 one step left of the smallest.

    The axis is linear for costs below zero or within one power of ten.
    """
    from matplotlib.ticker import MaxNLocator, NullLocator

    known = cost[~np.isnan(cost)]
    positive = known[known > 0]
    zero = bool((known == 0).any())
    if known.min() < 0 or not len(positive) or (not zero and known.max() < 10 * known.min()):
        room = 0.12 * max(float(np.ptp(known)), 1e-9)
        panel.set_xlim(known.min() - room, known.max() + room)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
        panel.xaxis.set_major_formatter(lambda value, _: _cost_text(value))
        return
    first, last = np.floor(np.log10(positive.min())), np.log10(positive.max())
    ticks = [10.0**power for power in np.arange(first, np.ceil(last) + 1)]
    left = 10 ** (min(np.log10(positive.min()), last - 1) - 0.4)
    if zero:
        panel.set_xscale("symlog", linthresh=10**first, linscale=0.9)
        panel.axvline(10**first / 2, color=GUIDE, linewidth=0.6, linestyle=(0, (1, 2)))
        ticks, left = [0.0, *ticks], -0.4 * 10**first
    else:
        panel.set_xscale("log")
    ticks = ticks[:: -(-len(ticks) // _MOST_TICKS)]
    panel.set_xticks(ticks, [_cost_text(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlim(left, 10 ** (last + 0.4))


def _cost_text(value: float) -> str:
    """`0.01`, `10k`, `2.5M`."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:g}"
