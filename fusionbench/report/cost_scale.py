"""Cost on encoders that no cell used: shapes at real scale, profiled without a study.

Everything is the profile's own; a count is the same on every device, so a row takes the counts of
all profiles of its method, and its times from one.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fusionbench.records.cost import CostRecord
from fusionbench.report.cost_numbers import (
    COUNTED,
    columns,
    large,
    measured_as,
    mebibytes,
    plain,
    spread,
)
from fusionbench.report.grid import GridRow, latex_grid, markdown_grid
from fusionbench.report.sections import Page
from fusionbench.report.tables import Row

_NOTE = """\
Counted for {weights} weights of this shape, {size} px, projector {width} wide; nothing was trained.
`trained` is fusion and projector; `added` is that beyond the projector of one layer; `total`
includes the frozen encoder. FLOPs are those of one image, 2 per multiply-add: `forward` beyond the
bare encoder with the projector of one layer; `backward` beyond theirs, in training; `language
model`: beyond the prefill of a 7B one, for more or fewer visual tokens and for what the method does
in its layers. Latency is the median of a batch [quartiles], over the encoder that of the
differences to the bare encoder's batches, timed in turn."""


def at_scale(profiles: Sequence[CostRecord]) -> Page:
    """A table for each encoder, input and projector; nothing without profiles."""
    groups: dict[tuple[str, int, int], list[CostRecord]] = defaultdict(list)
    for one in profiles:
        how = one.conditions
        groups[how.encoder, how.image_size, how.width].append(one)
    texts, latex, rows = [], [], list[Row]()
    for (encoder, size, width), group in sorted(groups.items()):
        found = list(_rows(group))
        grid = [_shown(one, counts) for one, counts in found]
        note = _NOTE.format(weights=group[0].conditions.weights, size=size, width=width)
        texts.append(f"### {encoder}\n\n{note}\n\n{markdown_grid(grid)}")
        latex.append(latex_grid(grid, f"Cost; {encoder}", f"cost-{encoder}"))
        rows += [_long(one) for one, _ in found]
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


def _shown(one: CostRecord, counts: Sequence[CostRecord]) -> GridRow:
    trained = one.parameters["fusion"] + one.parameters["projector"]
    back = next((v for c in counts if (v := c.flops_backward_over_encoder) is not None), None)
    return {
        "method": one.label,
        "trained": f"{trained:,}",
        "added": f"{one.parameters['over_projector']:,}",
        "total": f"{trained + one.parameters['encoder']:,}",
        "tokens out": str(one.tokens_out),
        "forward": large(one.flops_over_encoder),
        "backward": large(back),
        "language model": large(one.flops_language_model_over),
        "measured as": measured_as(one),
        "latency, ms": spread(one.latency_ms),
        "over the encoder, ms": spread(one.latency_over_encoder_ms),
        "images/s": plain(one.throughput),
        "peak memory": mebibytes(one.peak_memory_bytes),
        "training": "in the encoder" if one.in_encoder else "cacheable",
    }


def _long(one: CostRecord) -> Row:
    trained = one.parameters["fusion"] + one.parameters["projector"]
    counts = {
        "trainable": trained,
        "added": one.parameters["over_projector"],
        "total": trained + one.parameters["encoder"],
    }
    return {
        "track": "",
        "encoder": one.conditions.encoder,
        "steps": "",
        "method": one.label,
        **{f"{key}_{end}": str(value) for key, value in counts.items() for end in ("min", "max")},
        "cacheable": str(not one.in_encoder).lower(),
        **columns(one),
    }
