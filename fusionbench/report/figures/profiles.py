"""Measured cost from `DIR/profiles`: one set of conditions, never two mixed on one axis."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusionbench.records.cost import CostRecord
from fusionbench.report.cost_numbers import COUNTED

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
