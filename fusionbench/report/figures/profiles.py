"""Measured cost from `DIR/profiles`: one set of conditions, never two mixed on one axis."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONDITIONS = ("mode", "device", "dtype", "batch", "image_size", "compile", "threads")

Profile = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Profiles of equal conditions by method."""

    conditions: str
    """For an axis: `inference, NVIDIA H100, batch 32`."""
    by_method: Mapping[str, Profile]


def alike(profiles: Sequence[Profile], key: str) -> Profiles:
    """The largest set of profiles of equal conditions that know `key`, inference before training.

    FLOPs are counted and times measured, so that the two may come from different conditions.
    """
    groups: dict[tuple[str, ...], dict[str, Profile]] = defaultdict(dict)
    for profile in profiles:
        if profile.get(key) is not None:
            groups[_conditions(profile)][method_of(profile)] = profile
    if not groups:
        return Profiles(conditions="", by_method={})
    best = min(groups, key=lambda one: (one[0] == "train", -len(groups[one]), one))
    shown = [best[0], best[1], f"batch {best[3]}" if best[3] else ""]
    return Profiles(conditions=", ".join(one for one in shown if one), by_method=groups[best])


def method_of(profile: Profile) -> str:
    """The method's name with changed settings, as in a cell's record."""
    return str(profile.get("label") or _facts(profile).get("method", ""))


def encoder_of(profile: Profile) -> str:
    """The encoder that was measured."""
    return str(_facts(profile).get("encoder", ""))


def _conditions(profile: Profile) -> tuple[str, ...]:
    facts = _facts(profile)
    return tuple(str(facts.get(key, "")) for key in _CONDITIONS)


def _facts(profile: Profile) -> Profile:
    conditions = profile.get("conditions")
    return conditions if isinstance(conditions, Mapping) else profile
