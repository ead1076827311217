"""A folder of the track `vlm` by hand: local tasks and POPE, as a run would leave them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from in_process import fusionbench
from PIL import Image
from toy_records import record, spec

from fusionbench.api.benchmarks import Asked, Picture
from fusionbench.records.cell import Budget, CellRecord, CellSpec, Stage, Training
from fusionbench.records.history import Request
from fusionbench.records.outcomes import Said, items_of
from fusionbench.records.store import Items, Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_benchmark
from fusionbench.study.data import load_data
from fusionbench.study.study import VLM_SMOKE, as_plain
from fusionbench.vlm.evaluate import score

STAGE = Stage(
    parts=("digits", "scenes_count[share=2]"), sizes=(32, 64), rows="r" * 64, count=96,
    template="words", trained=("fusion", "projector", "language"),
)  # fmt: skip
TRAINING = Training(language="words", language_weights="l" * 32, stages=(STAGE,))
BUDGET = Budget(steps=250, batch=32, lrs=(1e-3,), resample="none")
METHODS = ("blind", "penultimate", "mema", "mema-readout", "last")
GAINS = {"blind": 0.0, "penultimate": 0.3, "mema": 0.4, "mema-readout": 0.3, "last": 0.2}
BLIND_TASK = "scenes_text"
"""A task on which no method is better than `blind`."""
TASKS = ("digits", "scenes_count", BLIND_TASK)
COUNT = 120
CONTROLS = {"mema": "mema-readout", "penultimate": "none: it is a baseline itself"}


def cell_of(method: str, task: str, seed: int = 0, training: Training = TRAINING) -> CellSpec:
    start = spec(method, task, seed, budget=BUDGET)
    return replace(start, track="vlm", settings={}, training=training)


def facts_of(method: str, cell: CellSpec) -> dict:
    return {
        "family": method.partition("-")[0], "representative": method in ("mema", "last"),
        "control": CONTROLS.get(method, "none: it is a control itself"), "seed_scope": "suite",
        "model": cell.model_id, "model_weights": "w" * 64, "chance": 0.25, "loss": (2.0, 1.0),
    }  # fmt: skip


def put_local(store: Store, method: str, task: str, seed: int, training: Training, **facts) -> None:
    """Outcomes on 60 images with two questions each, better than blind by the method's gain."""
    draw = np.random.default_rng([seed, len(task), METHODS.index(method)])
    gain = 0.0 if task == BLIND_TASK else GAINS[method]
    shared = np.random.default_rng([seed, len(task)]).random(COUNT)
    right = (shared + draw.normal(0, 0.05, COUNT) < 0.3 + gain).astype(np.float32)
    items = Items(
        names=tuple(f"{task}/{i}" for i in range(COUNT)),
        groups=tuple(f"{task}/image-{i // 2}" for i in range(COUNT)),
    )
    said = [
        Said(item=name, text=str(int(one))) for name, one in zip(items.names, right, strict=True)
    ]
    cell = cell_of(method, task, seed, training)
    start = record(cell, right, **facts_of(method, cell), task_family=task, distinct=2)
    store.write(replace(start, **facts), right, items, said)


def pope_asked(images: int = 20) -> list[Asked]:
    return [
        Asked(
            name=f"pope/{category}/{i}", group=f"pope/image-{i // 2}",
            gold={"label": "yes" if i % 2 else "no", "category": category},
        )
        for category in ("random", "popular", "adversarial")
        for i in range(2 * images)
    ]  # fmt: skip


def pope_texts(method: str, seed: int, asked: list[Asked]) -> list[str]:
    draw = np.random.default_rng([7, seed, METHODS.index(method)])
    wrong = draw.random(len(asked)) > 0.5 + GAINS[method]
    other = {"yes": "no", "no": "yes"}
    labels = [one.gold["label"] for one in asked]
    return [other[label] if flip else label for label, flip in zip(labels, wrong, strict=True)]


def put_pope(store: Store, method: str, seed: int, training: Training, **facts) -> None:
    from fusionbench.api.benchmarks import Answer

    asked, card = pope_asked(), read_catalog().benchmarks["pope"]
    texts = pope_texts(method, seed, asked)
    answers = [Answer(**vars(one), text=text) for one, text in zip(asked, texts, strict=True)]
    found = score(load_benchmark(card), answers)
    cell = replace(cell_of(method, "pope", seed, training), task_version=card.version)
    start = record(
        cell, found.outcomes, **(facts_of(method, cell) | {"chance": 0.5}), group="hallucination",
        measures=found.measures, distinct=2,
    )  # fmt: skip
    assert found.items == items_of(asked)
    store.write(replace(start, **facts), found.outcomes, found.items, found.answers)


def write_vlm(
    folder: Path, *, seeds: int = 1, pope: bool = True, methods=METHODS, tasks=TASKS,
    training: Training = TRAINING, study: dict | None = None, **facts,
) -> Path:  # fmt: skip
    """A study of these methods on local tasks and POPE."""
    with Store.create(folder) as store:
        for method in methods:
            for seed in range(seeds):
                for task in tasks:
                    put_local(store, method, task, seed, training, **facts)
                if pope:
                    put_pope(store, method, seed, training, **facts)
        names = (*tasks, *(["pope"] if pope else []))
        plain = as_plain(VLM_SMOKE) | {"seeds": seeds, "contrasts": [{"method": "mema"}]}
        store.history.add(
            Request(
                study=plain | (study or {}),
                labels=tuple(methods),
                tasks=names,
                same={"penultimate-decoder": "penultimate"},
            )  # fmt: skip
        )
    return folder


# A folder of trained cells of the track vlm, made once for all tests.

CELL_METHODS = ("penultimate", "scalar_mix", "mema", "blind")
CELL_TASKS = ("digits", "scenes_count")
STUDY = f"""
track: vlm
preset: smoke
name: cells
methods: [penultimate, scalar_mix, mema]
tasks: {json.dumps(CELL_TASKS)}
mixture: {json.dumps(CELL_TASKS)}
budget: {{steps: 12}}
"""


def trained_folder() -> Path:
    """Four methods on two tasks, twelve steps each, in the tests' cache folder; never changed."""
    cache = Path(os.environ["FUSIONBENCH_CACHE"])
    folder = cache / "trained-cells"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "trained-cells.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            study = cache / "trained-cells.yaml"
            study.write_text(STUDY)
            fusionbench("run", study, "--out", folder, "--quiet")
            (folder / "done").touch()
    return folder


def copied(to: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(trained_folder(), to)
    return to


def cell(method: str, task: str = "digits", folder: Path | None = None) -> CellRecord:
    """The record of a method on a task."""
    records = Store.open(folder or trained_folder()).records()
    return next(one for one in records if (one.spec.method, one.spec.task) == (method, task))


def asked_items(task: str, count: int) -> list[tuple[str, Picture, str]]:
    """Name, picture and question of the first test items of a task."""
    data = load_data(read_catalog().tasks[task])
    test = data.test
    return [
        (test.items[row], picture(data.images[test.images[row]]), test.questions[row])
        for row in range(count)
    ]


def picture(pixels) -> Picture:
    return Picture(name="picture", content=Image.fromarray(pixels))


def save_picture(file: Path, task: str = "scenes_count") -> Path:
    """The first test image of a task as a file."""
    (_, first, _), *_ = asked_items(task, 1)
    first.open().save(file)
    return file
