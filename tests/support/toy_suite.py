"""Suites of known outcomes as a run would leave them on disk, and the report's CSV read back."""

import csv
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.special import ndtri
from toy_records import CODE, record, spec

from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.records.history import Request
from fusionbench.records.store import Items, Store
from fusionbench.report.build import SECTIONS, ReportOptions, write_report
from fusionbench.study.study import QUICK, as_plain

CONTROLS = {
    "penultimate": "none: it is a baseline itself",
    "repeat": "none: it is a control itself",
}
CHANCE = 0.25


@contextmanager
def quick_disk():
    """Records are complete without waiting for the disk; no test pulls the plug."""
    with mock.patch.object(os, "fsync", lambda _: None):
        yield


def items_of(task, count, images=None):
    """`images` names the image of each example; without it each has its own."""
    own = [f"{task}/image-{i}" for i in range(count)]
    return Items(
        names=tuple(f"{task}/{i:05d}" for i in range(count)),
        groups=tuple(own if images is None else map(str, images)),
    )


def cell(method, task, seed, scores, **facts):
    """A finished cell; its own identity unless `facts` says otherwise."""
    start = CellRecord(
        spec=replace(spec(method, task, seed), settings={}), status="done", label=method,
        family=method.partition("-")[0], representative="-" not in method,
        control=CONTROLS.get(method, "repeat"), group="fine",
        task_family=task, in_suite=True, chance=CHANCE, score=float(np.mean(scores)),
        examples=len(scores), parameters={"fusion": 10, "projector": 20, "reader": 30},
        provenance={"code": CODE, "method": "built-in", "task": "built-in"},
    )  # fmt: skip
    return replace(start, **facts)


def write_suite(folder, suite, *, images=None, study=None, **facts):
    """`suite[method][task]` holds outcomes (seed, example). Facts may be callables of a method."""
    with quick_disk(), Store.create(folder) as store:
        for method, tasks in suite.items():
            own = {k: v(method) if callable(v) else v for k, v in facts.items()}
            for task, table in tasks.items():
                put_task(store, method, task, table, images=(images or {}).get(task), **own)
        labels, tasks = tuple(suite), tuple(next(iter(suite.values())))
        plain = (
            as_plain(QUICK)
            | {"contrasts": []}
            | {"seeds": len(next(iter(tasks_of(suite)))[1])}
            | (study or {})
        )
        store.history.add(Request(study=plain, labels=labels, tasks=tasks))
    return folder


def tasks_of(suite):
    return next(iter(suite.values())).items()


def put_task(store, method, task, table, *, images=None, seeds=None, **facts):
    names = items_of(task, table.shape[1], images)
    for seed, scores in zip(seeds or range(len(table)), table, strict=True):
        values = np.asarray(scores, dtype=np.float32)
        store.write(cell(method, task, seed, values, **facts), values, names)


def rows(folder, out, table="contrasts", **wanted):
    """The rows of one table's CSV, written anew."""
    write_report(folder, out, ReportOptions(formats=("csv",), table=table, **wanted))
    return read(out, table)


def read(out, table):
    with (out / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def section(out, table):
    """The part of report.md that holds a table; KeyError without it."""
    parts = re.split(r"^## (.+)\n\n", (out / "report.md").read_text(), flags=re.MULTILINE)
    titles = {one.name: one.title for one in SECTIONS}
    return dict(zip(parts[1::2], parts[2::2], strict=True))[titles[table]]


def the(found, **facts):
    """The one row in which these columns have these values."""
    fitting = [row for row in found if all(row[key] == value for key, value in facts.items())]
    assert len(fitting) == 1, (facts, len(fitting))
    return fitting[0]


def numbers(row, *columns):
    return [float(row[column]) for column in columns]


def correlated(rng, shares, *, seeds=6, items=200, noise=0.5):
    """Right or wrong on the same images, as paired methods are; `shares` in the long run."""
    image = rng.standard_normal(items)
    found = {}
    for method, share in shares.items():
        latent = image + noise * rng.standard_normal((seeds, items))
        found[method] = (latent < ndtri(share) * np.hypot(1, noise)).astype(np.float32)
    return found


# Small studies whose true differences are known, written by the store as a run would.

GROUPS = {"digits": "fine", "textile": "fine", "easy_vqa": "semantic"}
PAIRED_CHANCE = {"digits": 0.1, "textile": 0.5, "easy_vqa": 0.25}


def items(task, count=300, start=0):
    names = tuple(f"{task}-{i}" for i in range(start, start + count))
    return Items(names=names, groups=tuple(f"{task}/image-{i // 2}" for i in range(count)))


def outcomes(method, task, seed, gain, count=300, draw=0):
    """Right answers with probability 0.5 + gain (plus the run's luck), paired between methods."""
    shared = np.random.default_rng([zlib.crc32(task.encode()), seed, draw])
    difficulty = np.random.default_rng(zlib.crc32(task.encode())).normal(0, 0.15, count)
    own = np.random.default_rng([zlib.crc32(f"{method}{task}".encode()), seed, draw])
    line = shared.random(count) + own.normal(0, 0.1, count) + difficulty + own.normal(0, 0.01)
    return (line < 0.5 + gain).astype(np.float32)


def study(folder, gains, *, seeds=6, tasks=tuple(GROUPS), draw=0, count=300, facts=None, **changes):
    """Cells of each method; `gains` maps a method to its gain, or to one for each task."""
    with Store.create(Path(folder)) as store:
        for method, gain in gains.items():
            for task in tasks:
                here = gain.get(task, 0.0) if isinstance(gain, dict) else gain
                for seed in range(seeds):
                    scores = outcomes(method, task, seed, here, count, draw)
                    cell = spec(method, task, seed, **changes)
                    about = {"group": GROUPS[task], "chance": PAIRED_CHANCE[task]} | (facts or {})
                    store.write(record(cell, scores, **about), scores, items(task, count))
    return Path(folder)


# A study as wide as a real one: 40 methods, 14 tasks, names as long as they get, written by hand.
#
# Scores are drawn, not trained: what is tested with them is the drawing, not the science.

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
WIDE_GROUPS = ("fine", "semantic", "spatial")
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
    group = WIDE_GROUPS[column % len(WIDE_GROUPS)]
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
