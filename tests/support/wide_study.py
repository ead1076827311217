"""A study as wide as a real one: 40 methods, 14 tasks, names as long as they get, written by hand.

Scores are drawn, not trained: what is tested with them is the drawing, not the science.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from toy_records import CODE

from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.records.history import Request
from fusionbench.records.store import Items, Store
from fusionbench.study.study import QUICK, as_plain

LAYERS = 12
FAMILIES = {
    "mema": ("", "no_feedback", "no_memory", "no_query", "as_written", "repaired", "stateless",
             "readout", "shallow", "deep"),
    "dense_connector": ("sti", "sci", "dci", "efficient"),
    "scalar_mix": ("", "norm", "one_hot", "per_channel"),
    "internal_direct": ("all_layers_similar_clip", "pyramid_three_quarters"),
    "mmfuser": ("", "no_deformable_attention", "self_only"),
    "token_packer": ("", "coarse"),
    "layer": tuple(f"[index={i}]" for i in range(1, LAYERS + 1)),
    "last": ("",),
    "penultimate": ("",),
    "repeat_the_penultimate_layer_as_control": ("",),
}  # fmt: skip
GROUPS = ("fine", "semantic", "spatial")
TASKS = tuple(f"task_with_a_long_name_{i:02}" for i in range(12)) + ("digits", "elpv")
ITEMS = Items(names=tuple(map(str, range(64))), groups=tuple(map(str, range(64))))


def labels() -> list[str]:
    """Every method's name in the study."""
    found = []
    for family, variants in FAMILIES.items():
        for variant in variants:
            plain = not variant or variant.startswith("[")
            found.append(f"{family}{variant}" if plain else f"{family}-{variant}")
    return found


def write_study(
    folder: Path, *, seeds: int = 3, tasks: int = len(TASKS), methods: Sequence[str] = ()
) -> Path:
    """Write the cells of some methods (default: all of them); one cell is skipped."""
    rng = np.random.default_rng(7)
    methods = methods or labels()
    effects = rng.normal(0, 0.03, size=len(methods))
    with Store.create(folder) as store:
        for row, label in enumerate(methods):
            for column, task in enumerate(TASKS[:tasks]):
                level = 0.35 + 0.04 * column + effects[row] + rng.normal(0, 0.02)
                for seed in range(seeds):
                    _put(store, _spec(label, task, seed), (label, level, column), rng)
        store.history.add(
            Request(study=as_plain(replace(QUICK, name="wide", seeds=seeds, contrasts=())),
                labels=tuple(methods), tasks=TASKS[:tasks])
        )  # fmt: skip
    return folder


def _spec(label: str, task: str, seed: int) -> CellSpec:
    name, _, index = label.partition("[index=")
    settings = {"index": int(index[:-1])} if index else {"reduction": 4}
    return CellSpec(
        encoder="nano", weights="w", method=name, method_version=1, settings=settings, task=task,
        task_version=1, data="d" * 32, budget=QUICK.budget, seed=seed,
    )  # fmt: skip


def _put(
    store: Store, spec: CellSpec, kind: tuple[str, float, int], rng: np.random.Generator
) -> None:
    label, level, column = kind
    group = GROUPS[column % len(GROUPS)]
    if label == "token_packer-coarse" and column == 3:
        store.write(CellRecord(spec=spec, status="skipped", label=label, group=group,
                               in_suite=True, reason="needs a grid of 4 x 4"))  # fmt: skip
        return
    scores = (rng.random(64) < np.clip(level, 0.02, 0.98)).astype(np.float32)
    inside = label.startswith("mema")
    start = CellRecord(
        spec=spec, status="done", label=label, group=group, in_suite=True, chance=0.25,
        score=float(scores.mean()), examples=64, in_encoder=inside, taps=_taps(label),
        parameters={"fusion": _size(label), "projector": 10368, "reader": 34000},
        loss=tuple(np.round(2 * np.exp(-np.linspace(0, 2, 21)) + rng.normal(0, 0.05, 21), 4)),
        trace=_trace(label, rng),
        unmoved=("spatial_gate.delta.0.weight",) if label == "mema-as_written" else (),
        provenance={"code": CODE, "method": "built-in", "task": "built-in"},
    )  # fmt: skip
    store.write(start, scores, ITEMS)


def _size(label: str) -> int:
    if not label.startswith(("mema", "mmfuser", "scalar", "token")):
        return 0
    return 13 if label.startswith("scalar") else 1000 * (len(label) ** 2)


def _taps(label: str) -> tuple[tuple[int, ...], ...]:
    if label.startswith("scalar_mix"):
        return tuple((i,) for i in range(1, LAYERS + 1))
    if "[index=" in label:
        return ((int(label.partition("=")[2][:-1]),),)
    return ((LAYERS - 1,),)


def _trace(label: str, rng: np.random.Generator) -> dict[str, list[float]]:
    if label.startswith("scalar_mix"):
        weights = rng.dirichlet(np.linspace(1, 6, LAYERS))
        return {"layer_weights": [float(value) for value in weights]}
    if not label.startswith("mema"):
        return {}
    blocks = LAYERS - 1
    silent = label == "mema-no_feedback"
    found = {
        "gate_opening": rng.uniform(0.1, 0.6, blocks), "memory_norm": rng.uniform(1, 8, blocks),
        "feedback_norm": rng.uniform(0.1, 1, blocks),
        "feedback_cosine": rng.uniform(-0.3, 0.3, blocks),
    }  # fmt: skip
    return {key: [0.0 if silent else float(v) for v in values] for key, values in found.items()}
