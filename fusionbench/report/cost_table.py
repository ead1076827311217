"""`tables/cost`: parameters from the records, everything else from `DIR/profiles`.

What was not measured says so; nothing is estimated from something else.
"""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.records.cost import CostRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.cost_numbers import (
    COUNTED,
    NOT_MEASURED,
    columns,
    large,
    measured_as,
    mebibytes,
    plain,
    spread,
)
from fusionbench.report.cost_scale import at_scale
from fusionbench.report.grid import GridRow, latex_grid, markdown_grid
from fusionbench.report.sections import Page
from fusionbench.report.tables import Row, conditions

_NOTE = """\
`trainable` is fusion, projector and reader; `added` is fusion and projector beyond those of
{baseline}; `total` includes the frozen encoder. A range says that tasks differ. FLOPs are those of
one image beyond the bare encoder with the projector of one layer, 2 per multiply-add; latency is
the median of a batch [quartiles], over the encoder that of the differences to the bare encoder's
batches, timed in turn. In-encoder methods run the encoder in every training step; the others
train on cached features."""


def cost_page(analyses: Sequence[Analysis], profiles: Sequence[CostRecord]) -> Page:
    """One row for each method, and for each of its profiles where there are several."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in analyses:
        condition, methods = analysis.table.condition, range(len(analysis.table.methods))
        here = [one for one in profiles if one.conditions.encoder == condition.encoder]
        grid = [row for method in methods for row in _shown(analysis, method, here)]
        note = _NOTE.format(baseline=analysis.plan.baseline)
        texts.append(f"### {condition.title}\n\n{note}\n\n{markdown_grid(grid)}")
        latex.append(latex_grid(grid, f"Cost; {condition.title}", f"cost-{condition.encoder}"))
        rows += [row for method in methods for row in _long(analysis, method, here)]
    seen = {analysis.table.condition.encoder for analysis in analyses}
    beside = at_scale([one for one in profiles if one.conditions.encoder not in seen])
    texts.append(beside.markdown)
    latex.append(beside.latex)
    rows += beside.rows
    return Page(
        markdown="\n".join(filter(None, texts)), rows=rows, latex="\n".join(filter(None, latex))
    )


def _shown(analysis: Analysis, method: int, profiles: Sequence[CostRecord]) -> Iterator[GridRow]:
    table = analysis.table
    counts = {key: _range(values) for key, values in _counts(analysis, method).items()}
    for profile in _of(table, method, profiles) or [None]:
        yield {
            "method": table.methods[method],
            **{key: counts[key] for key in ("trainable", "added", "total")},
            "measured as": measured_as(profile),
            "FLOPs": large(profile.flops_over_encoder if profile else None),
            "latency, ms": spread(profile.latency_ms if profile else None),
            "over the encoder, ms": spread(profile.latency_over_encoder_ms if profile else None),
            "images/s": plain(profile.throughput if profile else None),
            "peak memory": mebibytes(profile.peak_memory_bytes if profile else None),
            "training": "in the encoder" if _inside(table, method) else "cacheable",
        }


def _long(analysis: Analysis, method: int, profiles: Sequence[CostRecord]) -> Iterator[Row]:
    table = analysis.table
    counts = {key: _ends(values) for key, values in _counts(analysis, method).items()}
    for profile in _of(table, method, profiles) or [None]:
        yield {
            **conditions(table),
            "method": table.methods[method],
            **{
                f"{key}_{end}": count
                for key, ends in counts.items()
                for end, count in zip(("min", "max"), ends, strict=True)
            },
            "cacheable": str(not _inside(table, method)).lower(),
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
        trainable = sum(mine.get(part, 0) for part in ("fusion", "projector", "reader"))
        found["trainable"].append(trainable)
        if theirs:
            found["added"].append(_fused(mine) - _fused(theirs))
        if "encoder" in mine:
            found["total"].append(trainable + mine["encoder"])
    return found


def _parameters(table: ScoreTable, method: int, task: int) -> Mapping[str, int]:
    done = (record.parameters for record in table.runs(method, task) if record.status == "done")
    return next(done, {})


def _fused(parameters: Mapping[str, int]) -> int:
    return parameters.get("fusion", 0) + parameters.get("projector", 0)


def _inside(table: ScoreTable, method: int) -> bool:
    return any(record.in_encoder for record in table.row(method))


def _of(
    table: ScoreTable, method: int, profiles: Sequence[CostRecord]
) -> Sequence[CostRecord | None]:
    label = table.row(method)[0].label or table.row(method)[0].spec.method
    mine = [one for one in profiles if one.label == label]
    here = [one for one in mine if one.conditions.device != COUNTED] or mine
    return sorted(here, key=lambda one: (*_key(one), one.id))


def _key(one: CostRecord) -> tuple[str, str, str, int]:
    return one.conditions.mode, one.conditions.device, one.conditions.dtype, one.conditions.batch


def _range(values: Sequence[int]) -> str:
    if not values:
        return NOT_MEASURED
    ends = sorted({min(values), max(values)})
    return " to ".join(f"{value:,}" for value in ends)


def _ends(values: Sequence[int]) -> tuple[str, str]:
    return (str(min(values)), str(max(values))) if values else ("", "")
