"""A study: a grid of cells with its planned comparisons, from presets, flags or a YAML file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fusionbench.records.cell import Budget, Setting


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, on what, with which budget."""

    name: str
    track: str = "probe"
    encoder: str = "nano"
    methods: tuple[str, ...] = ("all",)
    """Names, globs, `all`, or a name with settings: `layer[index=4]`."""
    tasks: tuple[str, ...] = ("all",)
    seeds: int = 3
    """Seeds 0..n-1."""
    settings: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Changed settings by method name or family (`--set mema.reduction=2`)."""
    budget: Budget
    baseline: str = "penultimate"
    contrasts: tuple[Mapping[str, Any], ...] = ()
    """Planned comparisons, declared before the run."""
    margins: Mapping[str, float] = field(default_factory=lambda: {"suite": 1.0, "task": 2.0})
    """Differences that do not matter, in points."""
    note: str = ""


# Fixed from a measured budget: docs/design.md, "The quick study".
QUICK = Study(
    name="quick",
    seeds=3,
    budget=Budget(steps=28, batch=32, lrs=(5e-3,), train_items=512, val_items=128, test_items=448),
    note="the whole machine on real input, too small to settle the question",
)
PAPER = Study(
    name="paper",
    encoder="dinov2-small",
    seeds=10,
    budget=Budget(
        steps=1000,
        batch=128,
        lrs=(3e-4, 1e-3, 3e-3),
        reader_width=256,
        query_dim=128,
        precision="bf16",
        feature_dtype="float16",
        image_size=112,
        seeds_per_pass=10,
    ),
)
# For the examples of the documentation: every part moves, nothing is learnt.
SMOKE = Study(
    name="smoke",
    seeds=1,
    budget=Budget(
        steps=2, batch=8, lrs=(3e-3,), train_items=32, val_items=16, test_items=32, reader_width=32
    ),
    note="two steps on a few images: shows that the machine runs, not what a method is worth",
)
PRESETS: Mapping[str, Study] = {study.name: study for study in (QUICK, PAPER, SMOKE)}


def as_plain(study: Study) -> dict[str, Any]:
    """The study as it stands in JSON."""
    return dict(json.loads(json.dumps(asdict(study))))
