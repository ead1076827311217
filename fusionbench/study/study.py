"""A study: a grid of cells with its planned comparisons, and the presets."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fusionbench.api.errors import unknown
from fusionbench.records.cell import Budget, Setting

LOCAL_TASKS = (
    "animal_mnist", "digits", "easy_vqa", "scenes_count", "scenes_exists", "scenes_orientation",
    "scenes_relation", "scenes_text", "scenes_texture", "scenes_tiny_color", "textile",
)  # fmt: skip
"""Tasks whose data needs no agreement to a licence: by name, never "whatever is installed", since
what a model is trained on is part of its identity."""


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
    references: bool = True
    """With `methods: all`, also run each single layer with the ridge reader."""
    language: str = ""
    """Of the track `vlm`: `words`, `smollm2-135m`, or `hf:` and an id or a folder."""
    model: str = ""
    """`llava:` and an id or a folder: encoder, projector and language model of a checkpoint."""
    mixture: tuple[str, ...] = ()
    """What a model is trained on: names of tasks and conversation files, whatever `tasks` says."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`query`, `mean`, `pixels`, `projector`, `trained`, `template`, `length`, `grouped`, and
    `stages`."""


ALL, OWN = "all", "own"
"""`own`: the layer and selection that a checkpoint's projector was trained on."""


PLANNED: tuple[Mapping[str, Any], ...] = (
    {"method": "best_single"},
    {"method": "scalar_mix"},
    {"method": "dense_connector-dci"},
    {"method": "dense_connector-sti"},
    {"method": "mmfuser"},
    {"method": "igva"},
    {"method": "tgif"},
    {
        "method": "lsf_internal_direct",
        "baseline": "penultimate-decoder",
        "control": "lsf_internal_direct-repeat",
    },
    {"method": "mema"},
    {"method": "mema", "baseline": "mema-no_memory", "control": "mema-no_memory"},
    {"method": "mema", "baseline": "mema-no_query", "control": "mema-no_query"},
    {"method": "mema", "baseline": "adapter", "control": "adapter"},
)
"""Published methods, the best single layer, and Mema against its parts; docs/protocol.md."""

# Budget: docs/protocol.md, "Budget of the quick study".
QUICK = Study(
    name="quick",
    seeds=4,
    budget=Budget(
        steps=8,
        batch=64,
        lrs=(3e-3,),
        vector_lr=0.1,
        tuning_seeds=1,
        train_items=2048,
        resample="distinct",
        draw=768,
        val_items=128,
        test_items=448,
        reader="ridge",
        random_layer="seed",
    ),
    contrasts=PLANNED,
    note="the whole machine on real input, too small to settle the question",
)
PAPER = Study(
    name="paper",
    encoder="dinov2-small",
    seeds=10,
    budget=Budget(
        steps=1000,
        batch=128,
        lrs=(1e-2, 2e-2, 5e-2),
        weight_decay=1.0,
        optimiser="muon",
        positions="grid",
        vector_lr=5e-3,
        reader_width=256,
        query_dim=128,
        precision="bf16",
        feature_dtype="float16",
        image_size=112,
        seeds_per_pass=10,
    ),
    contrasts=PLANNED,
)
# For the examples of the documentation: every part moves, nothing is learnt.
SMOKE = Study(
    name="smoke",
    seeds=1,
    budget=Budget(
        steps=2,
        batch=8,
        lrs=(3e-3,),
        train_items=32,
        val_items=16,
        test_items=32,
        reader_width=32,
        positions="grid",
    ),
    references=False,
    note="two steps on a few images: shows that the machine runs, not what a method is worth",
)

PROBE, VLM = "probe", "vlm"
TRACKS = (PROBE, VLM)
VLM_QUICK = Study(
    name="quick",
    track=VLM,
    language="words",
    mixture=LOCAL_TASKS,
    seeds=1,
    budget=Budget(
        steps=140,
        batch=32,
        lrs=(1.5e-3,),
        tuning_seeds=1,
        trial_steps=36,
        train_items=1024,
        val_items=64,
        test_items=448,
        resample="none",
    ),
    note="one seed of a small model: shows the machine, no ranking",
)
VLM_PAPER = replace(
    VLM_QUICK,
    name="paper",
    encoder="dinov2-small",
    language="smollm2-135m",
    seeds=5,
    budget=replace(
        VLM_QUICK.budget,
        steps=3000,
        batch=64,
        lrs=(3e-4, 1e-3, 3e-3),
        tuning_seeds=2,
        trial_steps=500,
        train_items=0,
        val_items=0,
        test_items=0,
        precision="bf16",
        feature_dtype="float16",
        image_size=112,
    ),
    note="",
)
VLM_SMOKE = replace(
    VLM_QUICK,
    name="smoke",
    budget=replace(
        VLM_QUICK.budget,
        steps=2,
        batch=8,
        trial_steps=1,
        train_items=32,
        val_items=8,
        test_items=16,
    ),
    note=SMOKE.note,
)
PRESETS: Mapping[str, Mapping[str, Study]] = {
    PROBE: {study.name: study for study in (QUICK, PAPER, SMOKE)},
    VLM: {study.name: study for study in (VLM_QUICK, VLM_PAPER, VLM_SMOKE)},
}
"""By track and name."""


def as_plain(study: Study) -> dict[str, Any]:
    """The study as JSON values."""
    return dict(json.loads(json.dumps(asdict(study))))


def preset(name: str, track: str = PROBE) -> Study:
    """The study of that name in a track. Raises UserError with the nearest one."""
    if track not in PRESETS:
        raise unknown("track", track, PRESETS)
    if name not in PRESETS[track]:
        raise unknown("preset", name, PRESETS[track])
    return PRESETS[track][name]
