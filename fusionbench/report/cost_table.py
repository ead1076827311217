"""`tables/cost`: parameters from the records, everything else from the profiles.

A missing measurement is shown as `not measured`; nothing is estimated.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusionbench.records.cell import CellRecord
from fusionbench.records.cost import CostRecord, Spread
from fusionbench.records.scores import ScoreTable
from fusionbench.records.text import checkpoint_name
from fusionbench.report.analysis import Analysis
from fusionbench.report.page import Page
from fusionbench.report.tables import GridRow, Row, conditions, latex_grid, markdown

NOT_MEASURED = "not measured"
COUNTED = "meta"
"""The device of a profile that was counted and not run; one that ran takes its place."""
_CONDITIONS = (
    *("device", "dtype", "batch", "mode", "compile"),
    *("image_size", "width", "threads", "language_model"),
)
_FLOPS = (
    "flops_over_encoder",
    "flops_backward_over_encoder",
    "flops_language_model_over",
    "flops_encoder",
)
_TRAINED = ("fusion", "projector", "reader")
_LOAD = ("throughput", "peak_memory_bytes", "peak_memory_over_encoder_bytes")


def columns(profile: CostRecord | None) -> Row:
    """Conditions and numbers of one profile, in FLOPs, ms, images per second and bytes."""
    how = profile.conditions if profile else None
    return {
        **{name: getattr(how, name, None) for name in _CONDITIONS},
        **{name: getattr(profile, name, None) for name in _FLOPS},
        **_quartiles("latency", profile.latency_ms if profile else None),
        **_quartiles("latency_over_encoder", profile.latency_over_encoder_ms if profile else None),
        **{name: getattr(profile, name, None) for name in _LOAD},
    }


def _quartiles(name: str, found: Spread | None) -> Row:
    return {
        f"{name}_ms": found.median if found else None,
        f"{name}_q1_ms": found.q1 if found else None,
        f"{name}_q3_ms": found.q3 if found else None,
    }


def measured_as(profile: CostRecord | None) -> str:
    """Mode, device, type and batch; `counted` or `not measured`."""
    if profile is None:
        return NOT_MEASURED
    how = profile.conditions
    if how.device == COUNTED:
        return "counted"
    parts = [how.mode, how.device, how.dtype, f"batch {how.batch}", f"{how.image_size} px"]
    parts += [f"projector {how.width} wide"]
    parts += [f"{how.threads} threads"] if how.threads > 1 else []
    parts += [f"compiled ({how.compile})"] if how.compile != "off" else []
    parts += ["with a language model"] if how.language_model else []
    return ", ".join(parts)


def large(value: float | None) -> str:
    """Three digits and a prefix: `12.3 G`."""
    if value is None:
        return NOT_MEASURED
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _spread(value: Spread | None) -> str:
    """Median [quartiles]."""
    return f"{value.median:.3g} [{value.q1:.3g}, {value.q3:.3g}]" if value else NOT_MEASURED


def _timing(profile: CostRecord | None) -> GridRow:
    """Latency, throughput and memory of one profile."""
    speed = profile.throughput if profile else None
    memory = profile.peak_memory_bytes if profile else None
    rate = "" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
    return {
        "latency, ms": _spread(profile.latency_ms if profile else None),
        "over the encoder, ms": _spread(profile.latency_over_encoder_ms if profile else None),
        "images/s": rate or NOT_MEASURED,
        "peak memory": NOT_MEASURED if memory is None else f"{memory / 2**20:,.0f} MiB",
    }


# Counts are the same on every device: a row takes them from all profiles of its method, and its
# times from one.


_SCALE_NOTE = """\
Counted for {weights} weights of this shape, {size} px, projector and question {width} wide; nothing
was trained.
`trained` is fusion and projector; `added` is that beyond the projector of one layer; `total`
includes the frozen encoder. FLOPs are those of the products and attention of one image, 2 per
multiply-add: `encoder`, the bare encoder up to the last block that the method reads with the
projector of one layer; `forward` beyond that; `backward` beyond theirs, in training; `language
model`: beyond the prefill of a 7B one, for more or fewer visual tokens and for what the method does
in its layers. What reads the last block runs one block more than `penultimate`. Latency is the
median of a batch [quartiles], over the encoder that of the differences to the batches of a bare
encoder that runs as many blocks, timed in turn."""


def at_scale(profiles: Sequence[CostRecord]) -> Page:
    """A table for each encoder, input and projector; nothing without profiles."""
    groups: dict[tuple[str, int, int], list[CostRecord]] = defaultdict(list)
    for one in profiles:
        how = one.conditions
        groups[how.encoder, how.image_size, how.width].append(one)
    texts, latex, rows = [], [], list[Row]()
    for (encoder, size, width), group in sorted(groups.items()):
        found = list(_rows(group))
        grid = [_scale_grid_row(one, counts) for one, counts in found]
        note = _SCALE_NOTE.format(weights=group[0].conditions.weights, size=size, width=width)
        texts.append(f"### {encoder}\n\n{note}\n\n{markdown(grid)}")
        latex.append(latex_grid(grid, f"Cost; {encoder}", f"cost-{encoder}"))
        rows += [_scale_row(one) for one, _ in found]
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def _rows(group: Sequence[CostRecord]) -> Iterator[tuple[CostRecord, list[CostRecord]]]:
    """A row for each measurement, or for one count where nothing was measured."""
    by_label: dict[str, list[CostRecord]] = defaultdict(list)
    for one in group:
        by_label[one.label].append(one)
    for label in sorted(by_label):
        mine = sorted(by_label[label], key=_order)
        ran = [one for one in mine if one.conditions.device != COUNTED]
        yield from ((one, mine) for one in ran or mine[-1:])


def _order(one: CostRecord) -> tuple[str, str, str, int, str]:
    how = one.conditions
    return how.mode, how.device, how.dtype, how.batch, one.id


def _scale_grid_row(one: CostRecord, counts: Sequence[CostRecord]) -> GridRow:
    trained = one.parameters["fusion"] + one.parameters["projector"]
    back = next((v for c in counts if (v := c.flops_backward_over_encoder) is not None), None)
    return {
        "method": one.label,
        "trained": f"{trained:,}",
        "added": f"{one.parameters['over_projector']:,}",
        "total": f"{trained + one.parameters['encoder']:,}",
        "tokens out": one.tokens_out,
        "encoder": large(one.flops_encoder),
        "forward": large(one.flops_over_encoder),
        "backward": large(back),
        "language model": large(one.flops_language_model_over),
        "measured as": measured_as(one),
        **_timing(one),
        "training": "in the encoder" if one.in_encoder else "cacheable",
    }


def _scale_row(one: CostRecord) -> Row:
    trained = one.parameters["fusion"] + one.parameters["projector"]
    counts = {
        "trainable": trained,
        "added": one.parameters["over_projector"],
        "total": trained + one.parameters["encoder"],
    }
    return {
        "track": "",
        "encoder": one.conditions.encoder,
        "steps": None,
        "method": one.label,
        **{f"{key}_{end}": value for key, value in counts.items() for end in ("min", "max")},
        "cacheable": not one.in_encoder,
        **columns(one),
    }


@dataclass(frozen=True, kw_only=True)
class TimeOver:
    """Measured inference time over a bare encoder that runs as many blocks."""

    share: float
    """Percent of the encoder's own time."""
    milliseconds: float
    """Of one batch."""
    batch: int
    device: str


def profiled(record: CellRecord) -> tuple[str, int]:
    """Label and version of a record's method, by which its profiles are found."""
    return record.label or record.spec.method, record.spec.method_version


def profiles_of(profiles: Sequence[CostRecord], table: ScoreTable, method: int) -> list[CostRecord]:
    """Profiles of a method of this version with the encoder and image size of the table."""
    condition, name = table.condition, profiled(table.row(method)[0])
    size = condition.budget.image_size
    found = [
        one
        for one in profiles
        if (one.label, one.conditions.method_version) == name
        and _encoder(one) == condition.encoder
        and size in (0, one.conditions.image_size)
    ]
    return sorted(found, key=_order)


def over_encoder(profiles: Sequence[CostRecord], table: ScoreTable, method: int) -> TimeOver | None:
    """The time of a method at inference, not compiled, without a language model; None unmeasured.

    Of several such profiles it is that of the largest batch.
    """
    found = []
    for one in profiles_of(profiles, table, method):
        how = one.conditions
        plain = how.mode == "inference" and how.compile == "off" and not how.language_model
        if plain and one.latency_over_encoder_ms and one.latency_encoder_ms:
            over, bare = one.latency_over_encoder_ms.median, one.latency_encoder_ms.median
            time = TimeOver(
                share=100 * over / bare, milliseconds=over, batch=how.batch, device=how.device
            )
            found.append(time)
    return max(found, key=lambda time: time.batch, default=None)


_NOTE = """\
`trainable` is fusion, projector and reader; `added` is that beyond the whole model of
{baseline}; `total` includes the frozen encoder. A range says that tasks differ. FLOPs are those of
the products and attention of one image, 2 per multiply-add: `encoder`, the bare encoder up to the
last block that the method reads with the projector of one layer, and `FLOPs`, what the method adds.
What reads the last block runs one block more than `penultimate`. Latency is the median of a batch
[quartiles], over the encoder that of the differences to the batches of a bare encoder that runs as
many blocks, timed in turn. In-encoder methods run the encoder in every training step; the others
train on cached features."""


def cost_page(analyses: Sequence[Analysis], profiles: Sequence[CostRecord]) -> Page:
    """One row for each method, and for each of its profiles where there are several."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in analyses:
        condition, methods = analysis.table.condition, range(len(analysis.table.methods))
        grid = [row for method in methods for row in _shown(analysis, method, profiles)]
        note = _NOTE.format(baseline=analysis.plan.baseline)
        texts.append(f"### {condition.title}\n\n{note}\n\n{markdown(grid)}")
        latex.append(latex_grid(grid, f"Cost; {condition.title}", f"cost-{condition.label}"))
        rows += [row for method in methods for row in _long(analysis, method, profiles)]
    seen = {analysis.table.condition.encoder for analysis in analyses}
    others = at_scale([one for one in profiles if _encoder(one) not in seen])
    texts.append(others.markdown)
    latex.append(others.latex)
    rows += others.rows
    return Page(
        markdown="\n".join(filter(None, texts)), rows=rows, latex="\n".join(filter(None, latex))
    )


def _encoder(profile: CostRecord) -> str:
    """The encoder's name as conditions have it."""
    return checkpoint_name(profile.conditions.encoder)


def _shown(analysis: Analysis, method: int, profiles: Sequence[CostRecord]) -> Iterator[GridRow]:
    table = analysis.table
    counts = {key: _range(values) for key, values in _counts(analysis, method).items()}
    for profile in _of(table, method, profiles) or [None]:
        yield {
            "method": table.methods[method],
            **{key: counts[key] for key in ("trainable", "added", "total")},
            "measured as": measured_as(profile),
            "encoder": large(profile.flops_encoder if profile else None),
            "FLOPs": large(profile.flops_over_encoder if profile else None),
            **_timing(profile),
            "training": "in the encoder" if _inside(table, method) else "cacheable",
        }


def _long(analysis: Analysis, method: int, profiles: Sequence[CostRecord]) -> Iterator[Row]:
    table = analysis.table
    for profile in _of(table, method, profiles) or [None]:
        yield {
            **conditions(table),
            "method": table.methods[method],
            **{
                f"{key}_{end.__name__}": end(values, default=None)
                for key, values in _counts(analysis, method).items()
                for end in (min, max)
            },
            "cacheable": not _inside(table, method),
            **columns(profile),
        }


def _counts(analysis: Analysis, method: int) -> Mapping[str, list[int]]:
    """Parameters on each task; empty where they are not known."""
    table, baseline = analysis.table, analysis.plan.baseline
    plain = table.methods.index(baseline) if baseline in table.methods else None
    found: dict[str, list[int]] = {key: [] for key in ("trainable", "added", "total")}
    for task in range(len(table.tasks)):
        mine = _parameters(table, method, task)
        theirs = _parameters(table, plain, task) if plain is not None else {}
        if not mine:
            continue
        trainable = sum(mine.get(part, 0) for part in _TRAINED)
        found["trainable"].append(trainable)
        if theirs:
            found["added"].append(trainable - sum(theirs.get(part, 0) for part in _TRAINED))
        if "encoder" in mine:
            found["total"].append(trainable + mine["encoder"])
    return found


def _parameters(table: ScoreTable, method: int, task: int) -> Mapping[str, int]:
    done = (record.parameters for record in table.runs(method, task) if record.status == "done")
    return next(done, {})


def _inside(table: ScoreTable, method: int) -> bool:
    return any(record.in_encoder for record in table.row(method))


def _of(
    table: ScoreTable, method: int, profiles: Sequence[CostRecord]
) -> Sequence[CostRecord | None]:
    mine = profiles_of(profiles, table, method)
    return [one for one in mine if one.conditions.device != COUNTED] or mine[-1:]


def _range(values: Sequence[int]) -> str:
    if not values:
        return NOT_MEASURED
    ends = sorted({min(values), max(values)})
    return " to ".join(f"{value:,}" for value in ends)
