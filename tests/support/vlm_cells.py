"""A folder of trained cells of the track vlm, made once for all tests."""

import json
import os
import shutil
from pathlib import Path

from filelock import FileLock
from in_process import fusionbench
from PIL import Image

from fusionbench.api.benchmarks import Picture
from fusionbench.records.cell import CellRecord
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.data import load_data

METHODS = ("penultimate", "scalar_mix", "mema", "blind")
TASKS = ("digits", "scenes_count")
STUDY = f"""
track: vlm
preset: smoke
name: cells
methods: [penultimate, scalar_mix, mema]
tasks: {json.dumps(TASKS)}
mixture: {json.dumps(TASKS)}
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
