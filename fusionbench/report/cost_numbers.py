"""What a profile says, as text: for people, and with all digits for programs."""

from fusionbench.records.cost import CostRecord, Spread
from fusionbench.report.tables import Row

NOT_MEASURED = "not measured"
COUNTED = "meta"
"""The device of a profile that was counted and not run; one that ran takes its place."""


def columns(profile: CostRecord | None) -> Row:
    """The numbers of one profile; empty fields where there is none."""
    how = profile.conditions if profile else None
    latency = profile.latency_ms if profile else None
    over = profile.latency_over_encoder_ms if profile else None
    return {
        "device": how.device if how else "",
        "dtype": how.dtype if how else "",
        "batch": str(how.batch) if how else "",
        "mode": how.mode if how else "",
        "compile": how.compile if how else "",
        "flops_over_encoder": number(profile.flops_over_encoder if profile else None),
        "flops_backward_over_encoder": number(
            profile.flops_backward_over_encoder if profile else None
        ),
        "flops_language_model_over": number(profile.flops_language_model_over if profile else None),
        "flops_encoder": number(profile.flops_encoder if profile else None),
        "latency_ms": number(latency.median if latency else None),
        "latency_q1_ms": number(latency.q1 if latency else None),
        "latency_q3_ms": number(latency.q3 if latency else None),
        "latency_over_encoder_ms": number(over.median if over else None),
        "latency_over_encoder_q1_ms": number(over.q1 if over else None),
        "latency_over_encoder_q3_ms": number(over.q3 if over else None),
        "throughput": number(profile.throughput if profile else None),
        "peak_memory_bytes": number(profile.peak_memory_bytes if profile else None),
        "peak_memory_over_encoder_bytes": number(
            profile.peak_memory_over_encoder_bytes if profile else None
        ),
    }


def measured_as(profile: CostRecord | None) -> str:
    """The conditions in words."""
    if profile is None:
        return NOT_MEASURED
    how = profile.conditions
    if how.device == COUNTED:
        return "counted"
    return f"{how.mode}, {how.device}, {how.dtype}, batch {how.batch}"


def large(value: float | None) -> str:
    """With a prefix of a thousand."""
    if value is None:
        return NOT_MEASURED
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def spread(value: Spread | None) -> str:
    """Median and quartiles."""
    if value is None:
        return NOT_MEASURED
    return f"{value.median:.3g} [{value.q1:.3g}, {value.q3:.3g}]"


def mebibytes(value: int | None) -> str:
    """Whole MiB."""
    return NOT_MEASURED if value is None else f"{value / 2**20:,.0f} MiB"


def plain(value: float | None) -> str:
    """Whole units, or three digits of less than a hundred."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def number(value: float | int | None) -> str:
    """All digits; empty for what is not known."""
    return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)
