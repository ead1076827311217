"""Reading a packed folder: tasks that need no package. See `fusionbench.packing`."""

import json
import lzma
import os
from pathlib import Path

import numpy as np

from fusionbench.api.task import SPLITS, Split, TaskData

MANIFEST = "manifest.json"


def packed_folder() -> Path | None:
    """The folder that `fusionbench pack` wrote, if FUSIONBENCH_DATA names one."""
    named = os.environ.get("FUSIONBENCH_DATA", "")
    return Path(named).expanduser() if named else None


def packed_tasks() -> dict[str, str]:
    """Name of each packed task and the hash of its data before any resizing."""
    folder = packed_folder()
    manifest = folder / MANIFEST if folder else None
    if manifest is None or not manifest.exists():
        return {}
    return dict(json.loads(manifest.read_text())["tasks"])


def packed_data(task: str) -> TaskData | None:
    """A packed task's data; None if it was not packed."""
    folder = packed_folder()
    if folder is None or task not in packed_tasks():
        return None
    home = folder / "tasks"
    values = json.loads(lzma.decompress((home / f"{task}.json.xz").read_bytes()))
    stored = lzma.decompress((home / f"{task}.images.xz").read_bytes())
    images = np.frombuffer(stored, dtype=np.uint8).reshape(values["shape"])
    if values["grey"]:
        images = np.repeat(images[..., None], 3, axis=-1)
    splits = {name: _split(values["splits"][name]) for name in SPLITS}
    return TaskData(images=images, answers=tuple(values["answers"]), **splits)


def _split(values: dict[str, list[str] | list[int]]) -> Split:
    return Split(
        items=tuple(str(item) for item in values["items"]),
        images=np.array(values["images"], dtype=np.int64),
        questions=tuple(str(question) for question in values["questions"]),
        answers=np.array(values["answers"], dtype=np.int64),
    )
