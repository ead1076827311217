"""Score against cost: who gives the most for what, with the Pareto front."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.records.cost import CostRecord
from fusionbench.report.cost_table import COUNTED
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.style import (
    GRID,
    GUIDE,
    IN_ENCODER,
    INK,
    LINE_INCHES,
    ON_FEATURES,
    Drawing,
    label_column,
    legend,
    where_handles,
)
from fusionbench.report.tables import Row, Summary, across

# What methods cost: parameters from the records, FLOPs and latency where they were measured.


_MEASURED = (
    ("flops_over_encoder", "FLOPs over the encoder"),
    # Timed in turn with the encoder: a machine that slows down from one method to the next does
    # not move it.
    ("latency_over_encoder_ms", "ms a batch over the encoder"),
)

Costs = Float[np.ndarray, " method"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One measure of cost: a value per method with its spread, NaN where it was not measured."""

    key: str
    title: str
    value: Float[np.ndarray, " method"]
    low: Float[np.ndarray, " method"]
    high: Float[np.ndarray, " method"]


def measures(material: Material, rows: Sequence[int]) -> list[Axis]:
    """Parameters from the records; FLOPs and latency where somebody measured them."""
    fusion = _parameters(material, rows, ("fusion",))
    trained = _parameters(material, rows, ("fusion", "projector"))
    axes = [
        Axis(key="parameters_fusion", title="parameters of the fusion", value=fusion,
             low=fusion, high=fusion),
        Axis(key="parameters_fusion_projector", title="fusion and projector", value=trained,
             low=trained, high=trained),
    ]  # fmt: skip
    axes += [_measured(material, rows, key, title) for key, title in _MEASURED]
    return [axis for axis in axes if not np.isnan(axis.value).all()]


def _parameters(
    material: Material, rows: Sequence[int], parts: Sequence[str]
) -> Float[np.ndarray, " method"]:
    """The median over tasks: the projector's width may follow the task's encoder."""
    counts = [
        [sum(record.parameters.get(part, 0) for part in parts)
         for record in material.table.row(row) if record.status == "done"]
        for row in rows
    ]  # fmt: skip
    return np.array([float(np.median(count)) for count in counts])


def _measured(material: Material, rows: Sequence[int], key: str, title: str) -> Axis:
    """FLOPs are one number; a time is a median between quartiles."""
    encoder = material.table.condition.encoder
    here = [one for one in material.profiles if one.conditions.encoder == encoder]
    profiles = alike(here, attrgetter(key))
    methods = [material.table.methods[row] for row in rows]
    found = [getattr(profiles.by_method.get(method), key, None) for method in methods]
    title = f"{title}\n({profiles.conditions})" if profiles.conditions else title
    median, low, high = (
        np.array([_end(one, end) for one in found]) for end in ("median", "q1", "q3")
    )
    return Axis(key=key, title=title, value=median, low=low, high=high)


def _end(value: object, end: str) -> float:
    """The median or a quartile; a number that was counted is its own median and has no spread."""
    found = getattr(value, end, value if end == "median" else None)
    return float(found) if isinstance(found, int | float) else float("nan")


# Measured cost from `DIR/profiles`: one set of conditions, never two mixed on one axis.


Measure = Callable[[CostRecord], object]


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Profiles of equal conditions by method."""

    conditions: str
    """For an axis: `inference, NVIDIA H100, batch 32`."""
    by_method: Mapping[str, CostRecord]


def alike(profiles: Sequence[CostRecord], measure: Measure) -> Profiles:
    """The largest set of profiles of equal conditions that know a measure, inference first.

    FLOPs are counted and times measured, so that the two may come from different conditions.
    """
    groups: dict[tuple[str, ...], dict[str, CostRecord]] = defaultdict(dict)
    for profile in profiles:
        if measure(profile) is not None:
            groups[_conditions(profile)][profile.label] = profile
    if not groups:
        return Profiles(conditions="", by_method={})
    best = min(groups, key=lambda one: (one[0] == "train", -len(groups[one]), one))
    mode, device, batch, *_ = best
    text = "counted" if device == COUNTED else f"{mode}, {device}, batch {batch}"
    return Profiles(conditions=text, by_method=groups[best])


def _conditions(profile: CostRecord) -> tuple[str, ...]:
    """All but the method."""
    facts = profile.conditions
    values = (facts.mode, facts.device, facts.batch, facts.dtype, facts.image_size, facts.width,
              facts.compile, facts.threads, facts.language_model, facts.weights)  # fmt: skip
    return tuple(str(value) for value in values)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READING = """\
Up is better, left is cheaper. The stepped line is the Pareto front: no method on it (filled) is
beaten by one that is at least as good and as cheap. It runs through means: the grey bar is the
median 95 % interval over runs, and a method that lies less than that below the front may belong to
it as well. Names stand in the order of the score, each led to its height."""
_DECADES = 1.0
"""From here on an axis is logarithmic."""


def pareto(
    cost: Float[np.ndarray, " method"], score: Float[np.ndarray, " method"]
) -> Bool[np.ndarray, " method"]:
    """Methods that no other one equals or beats in both and beats in one; NaN never counts."""
    known = ~(np.isnan(cost) | np.isnan(score))
    no_worse = (cost[:, None] <= cost) & (score[:, None] >= score)
    better = (cost[:, None] < cost) | (score[:, None] > score)
    beaten = (no_worse & better & known[:, None]).any(axis=0)
    return np.asarray(known & ~beaten)


def draw(material: Material) -> Drawing | None:
    """A panel per measure of cost, the score of the suite up the side."""
    table = material.table
    found = [across(table, row, table.suite) for row in range(len(table.methods))]
    ran = [row for row, summary in enumerate(found) if summary.runs]
    if len(ran) < 2:
        return None
    left = len(found) - len(ran)
    note = f" Left out, for tasks that did not run: {left} of {len(found)}." if left else ""
    axes = measures(material, ran)
    return Drawing(
        name="cost",
        title="Score against cost",
        reading=_READING + note,
        figure=_figure(material, [found[row] for row in ran], ran, axes),
        data=_rows(material, [found[row] for row in ran], ran, axes),
    )


def _figure(
    material: Material, found: Sequence[Summary], rows: Sequence[int], axes: Sequence[Axis]
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    inches = max(2.6, LINE_INCHES * len(rows))
    width = 3.2 if len(axes) < 3 else 2.3
    figure = Figure(figsize=(0.6 + width * len(axes) + 1.6, inches + 0.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _panel(panel, material, found, rows, axis)
    panels[0].set_ylabel("mean over the suite, %")
    means = np.array([100 * one.mean for one in found])
    _heights(panels[0], means, 50 * np.array([one.high - one.low for one in found]))
    label_column(panels[-1], means, [material.labels[row] for row in rows], inches)
    for panel in panels:
        panel.tick_params(axis="y", left=False)
    front = Line2D([], [], color=INK, linewidth=0.9, label="Pareto front (filled)")
    legend(figure, [*where_handles(), front])
    return figure


def _panel(
    panel: "Axes",
    material: Material,
    found: Sequence[Summary],
    rows: Sequence[int],
    axis: Axis,
) -> None:
    score = np.array([100 * one.mean for one in found])
    front = pareto(axis.value, score)
    to_place = _places(panel, axis.value)
    place = to_place(axis.value)
    steps = np.array(sorted(np.flatnonzero(front), key=lambda i: (axis.value[i], score[i])), int)
    panel.step(place[steps], score[steps], where="post", color=INK, linewidth=0.9, zorder=1)
    for inside, color, marker in ((False, ON_FEATURES, "o"), (True, IN_ENCODER, "^")):
        for filled in (False, True):
            here = [i for i, row in enumerate(rows)
                    if material.in_encoder[row] == inside and front[i] == filled]  # fmt: skip
            panel.hlines(score[here], to_place(axis.low[here]), to_place(axis.high[here]),
                         colors=color, linewidth=0.7)  # fmt: skip
            panel.plot(place[here], score[here], marker, markersize=4.5, color=color,
                       markerfacecolor=color if filled else "none", linestyle="")  # fmt: skip
    limits = panel.get_xlim()
    panel.hlines(score, place, limits[1], colors=GRID, linewidth=0.5, zorder=0)
    panel.set_xlim(limits)
    panel.set_xlabel(axis.title)


def _heights(
    panel: "Axes", means: Float[np.ndarray, " method"], half: Float[np.ndarray, " method"]
) -> None:
    """Limits that hold all means and the bar of the median interval, drawn at the left."""
    middle = float(means.min() + means.max()) / 2
    typical = float(np.nanmedian(half)) if not np.isnan(half).all() else 0.0
    reach = 1.06 * max(float(np.ptp(means)) / 2, typical, 0.5)
    panel.set_ylim(middle - reach, middle + reach)
    panel.plot([0.02, 0.02], [middle - typical, middle + typical], color=GUIDE, linewidth=3,
               alpha=0.5, transform=panel.get_yaxis_transform(), solid_capstyle="butt")  # fmt: skip


def _places(panel: "Axes", cost: Costs) -> Callable[[Costs], Costs]:
    """From a cost to its place, with ticks and limits set: powers of ten, and 0 on its own.

    What spans less than a power of ten, or is negative somewhere, keeps a plain axis.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    known = cost[~np.isnan(cost)]
    positive = known[known > 0]
    if not len(positive) or known.min() < 0 or _decades(known) < _DECADES:
        panel.margins(x=0.12)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
        if len(known) and np.abs(known).max() >= 1000:
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        return lambda values: values
    powers = np.log10(positive)
    first, last = float(np.floor(powers.min())), float(powers.max())
    ticks = [float(power) for power in np.arange(first, np.ceil(last) + 1)]
    texts = [_power(int(power)) for power in ticks]
    if (known == 0).any():
        ticks, texts = [first - 1, *ticks], ["0", *texts]
        panel.axvline(first - 0.5, color=GUIDE, linewidth=0.6, linestyle=(0, (1, 2)))
    step = -(-len(ticks) // 6)
    panel.set_xticks(ticks[::step], texts[::step])
    left = first - 1 if (known == 0).any() else float(powers.min())
    panel.set_xlim(min(left, last - 1) - 0.4, last + 0.4)

    def place(values: Costs) -> Costs:
        powers = np.log10(np.where(values > 0, values, np.nan))
        # The end of a spread may be negative where no value is: its line runs off the edge.
        return np.where(values > 0, powers, np.where(values == 0, first - 1, first - 9))

    return lambda values: np.where(np.isnan(values), np.nan, place(values))


def _decades(known: Costs) -> float:
    """How many powers of ten lie between the smallest and the largest; 0 counts as far away."""
    return float("inf") if known.min() == 0 else float(np.log10(known.max() / known.min()))


def _power(exponent: int) -> str:
    named = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1k", 4: "10k", 5: "100k",
             6: "1M", 7: "10M", 8: "100M", 9: "1G", 10: "10G", 11: "100G", 12: "1T"}  # fmt: skip
    return named.get(exponent, f"1e{exponent}")


def _rows(
    material: Material, found: Sequence[Summary], rows: Sequence[int], axes: Sequence[Axis]
) -> list[Row]:
    score = np.array([one.mean for one in found])
    return [
        {
            "cost": axis.key,
            "method": material.labels[row],
            "value": f"{axis.value[i]:g}",
            "q1": f"{axis.low[i]:g}",
            "q3": f"{axis.high[i]:g}",
            "score": f"{found[i].mean:.6f}",
            "ci_low": f"{found[i].low:.6f}",
            "ci_high": f"{found[i].high:.6f}",
            "on_front": str(bool(front[i])).lower(),
        }
        for axis in axes
        for front in [pareto(axis.value, score)]
        for i, row in enumerate(rows)
    ]
