"""A folder that makes a run need nothing else: images, questions, splits and encoder weights.

For machines without a package index: `fusionbench pack ... OUT` here, `FUSIONBENCH_DATA=OUT` there.
Images larger than the encoder's input are resized as the encoder would do it, to whole grey
levels, so that a packed run and an unpacked one see the same pixels.
"""

import json
import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.task import SPLITS, Split, TaskData
from fusionbench.encoders.fetch import fetch
from fusionbench.packed import MANIFEST
from fusionbench.registry.catalog import TaskCard
from fusionbench.task_source import load_data, task_hash

_BATCH = 256
Pixels = UInt8[np.ndarray, "image height width 3"]


def pack(tasks: Sequence[TaskCard], encoder: str, *, size: int, out: Path) -> tuple[int, int]:
    """Write the tasks' data at most `size` pixels wide and the encoder's weights.

    Gives the number of tasks written and the folder's size in bytes. What travels with the
    package is not copied: tasks that are rendered (they need no other package) and `nano`.
    Raises ValueError for an unknown encoder, OSError if its weights cannot be fetched.
    """
    weights = fetch(encoder)
    hashes = {}
    for card in tasks:
        if not card.needs:
            continue
        data = load_data(card)
        _write_task(out / "tasks", card.name, data, _fitted(data.images, size))
        hashes[card.name] = task_hash(card)
    if encoder != "nano":
        _copy_weights(weights, out / "weights")
    # Written last: a folder without it is no pack.
    manifest = {"tasks": hashes, "encoder": encoder, "size": size}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    size_written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return len(hashes), size_written


def _copy_weights(weights: Path, folder: Path) -> None:
    if weights.is_dir():
        shutil.copytree(weights, folder / weights.name, dirs_exist_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in (weights, weights.with_suffix(".json")):
        shutil.copyfile(file, folder / file.name)


def _fitted(images: Pixels, size: int) -> Pixels:
    """Images no larger than the encoder reads them; small ones stay as they are."""
    if max(images.shape[1:3]) <= size:
        return images
    import torch

    from fusionbench.encoders.vit import resize

    parts = torch.split(torch.from_numpy(images), _BATCH)
    return np.concatenate([resize(part, size).numpy() for part in parts])


def _write_task(home: Path, task: str, data: TaskData, images: Pixels) -> None:
    grey = bool((images[..., 0:1] == images).all())
    stored = np.ascontiguousarray(images[..., 0] if grey else images)
    values = {
        "shape": list(stored.shape),
        "grey": grey,
        "answers": list(data.answers),
        "splits": {name: _plain(data.split(name)) for name in SPLITS},
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{task}.json.xz").write_bytes(lzma.compress(json.dumps(values).encode()))
    (home / f"{task}.images.xz").write_bytes(lzma.compress(stored.tobytes()))


def _plain(split: Split) -> dict[str, list[str] | list[int]]:
    return {
        "items": list(split.items),
        "images": split.images.tolist(),
        "questions": list(split.questions),
        "answers": split.answers.tolist(),
    }
