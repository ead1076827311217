"""A folder that makes a run need nothing else: images, questions, splits and encoder weights.

For machines without a package index: `fusionbench pack ... OUT` here, `FUSIONBENCH_DATA=OUT` there.
Images larger than the encoder's input are resized as the encoder does it (interpolation, crop or
squash), to whole grey levels, so that a packed run and an unpacked one see the same pixels. A pack
with resized images is refused to other encoders and sizes.
"""

import hashlib
import json
import lzma
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.benchmarks import data_hash as data_hash_of
from fusionbench.api.errors import UserError
from fusionbench.api.sources import find_source
from fusionbench.api.tasks import SPLITS, Split, TaskData, data_hash, validate
from fusionbench.encoders.card import EncoderCard
from fusionbench.encoders.catalog import preprocessing
from fusionbench.encoders.preprocessing import Preprocessing
from fusionbench.harness.bundle import keep
from fusionbench.records.cell import Budget, canonical
from fusionbench.records.files import cache_dir, write_atomic
from fusionbench.records.parallel import in_child, in_order
from fusionbench.registry.catalog import BenchmarkCard, TaskCard
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.registry.plugins import load_benchmark, load_task

_LOAD_SECONDS = 3600.0
"""Of one task of a plug-in."""


def load_data(card: TaskCard) -> TaskData:
    """A task's data; ValueError if the task breaks the contract."""
    if (packed := packed_data(card.name)) is not None:
        return packed
    data = load_task(card).load()
    if not isinstance(data, TaskData):
        raise TypeError(
            f"load() of task {card.name!r} returned {type(data).__name__}, not TaskData"
        )
    validate(data)
    return data


def task_hash(card: TaskCard) -> str:
    """Hash of a task's data, remembered for as long as its source files stay the same."""
    return task_hashes([card])[card.name]


def task_hashes(cards: Sequence[TaskCard], keep_for: Budget | None = None) -> Mapping[str, str]:
    """`task_hash` by name; what is not known yet is looked at several at a time.

    What was rendered or read for it is thrown away; with a budget its cut is kept for the encoder.
    Raises UserError for a task that cannot be loaded.
    """
    found, failed = tried_hashes(cards, keep_for)
    for name, why in failed.items():
        raise UserError(f"task {name!r}: {why}", "leave it out, or mend it")
    return found


def tried_hashes(
    cards: Sequence[TaskCard], keep_for: Budget | None = None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """As `task_hashes`, and the reasons of the tasks that cannot be loaded, by name.

    The code of a plug-in is run in a process of its own.
    """
    found = {card.name: _known(card) for card in cards}
    unknown = [card for card in cards if not found[card.name]]
    own = [card for card in unknown if card.source == BUILT_IN]
    looks = list(in_order([partial(_tried, card, keep_for) for card in own]))
    looks += [_tried_apart(card, keep_for) for card in unknown if card.source != BUILT_IN]
    unknown = [*own, *(card for card in unknown if card.source != BUILT_IN)]
    failed = {card.name: why for card, (_, why) in zip(unknown, looks, strict=True) if why}
    found |= {card.name: seen for card, (seen, _) in zip(unknown, looks, strict=True)}
    return {name: seen for name, seen in found.items() if seen}, failed


def _tried(card: TaskCard, budget: Budget | None) -> tuple[str, str]:
    """The hash of a task's data, or why there is none: a task may raise anything."""
    try:
        return _look(card, budget), ""
    except UserError as error:
        return "", error.message
    except (Exception, SystemExit) as error:
        return "", f"cannot be loaded: {type(error).__name__}: {error}"


def _tried_apart(card: TaskCard, budget: Budget | None) -> tuple[str, str]:
    try:
        return in_child(_tried, card, budget, seconds=_LOAD_SECONDS)
    except RuntimeError as error:
        return "", f"cannot be loaded: {error}"


def benchmark_hash(card: BenchmarkCard, data_root: str) -> str:
    """Hash of a benchmark's files below the data root. Raises UserError if they are not there."""
    if not data_root:
        raise UserError(
            f"benchmark {card.name!r} needs its files", "name their folder with --data-root"
        )
    return data_hash_of(load_benchmark(card), find_source(card.name, card.needs, data_root))


def _known(card: TaskCard) -> str:
    if card.name in (packed := packed_tasks()):
        return packed[card.name]
    note = _note(card)
    return note.read_text().strip() if note.is_file() else ""


def _look(card: TaskCard, budget: Budget | None) -> str:
    data = load_data(card)
    found = data_hash(data)
    # Without a writable cache folder the data is read each time: slower, never wrong.
    with suppress(OSError):
        write_atomic(_note(card), found.encode())
        if budget is not None:
            keep(card.name, found, data, budget)
    return found


def _note(card: TaskCard) -> Path:
    stamp = canonical([card.name, card.version, sorted(_stamps(card))])
    return cache_dir("data", hashlib.sha256(stamp.encode()).hexdigest()[:24])


def _stamps(card: TaskCard) -> Iterator[list[str | int]]:
    """Size and time of the task's code and data files and of its packages' records."""
    source = Path(card.file)
    for path in [*source.parent.glob(f"{source.stem}.*"), *source.parent.glob("_*.py")]:
        yield [path.name, *_stamp(path)]
    for package in card.needs:
        for record in _package_records(package):
            yield [package, *_stamp(record)]


def _package_records(package: str) -> Iterator[Path]:
    for name in packages_distributions().get(package, ()):
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:
            continue
        yield from (Path(str(f.locate())) for f in files if f.name == "RECORD")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


MANIFEST = "manifest.json"


def packed_folder() -> Path | None:
    """The folder that `fusionbench pack` wrote, if FUSIONBENCH_DATA names one."""
    named = os.environ.get("FUSIONBENCH_DATA", "")
    return Path(named).expanduser() if named else None


def packed_tasks() -> dict[str, str]:
    """Name of each packed task and the hash of its data before any resizing."""
    return dict(_manifest().get("tasks", {}))


def _manifest() -> dict[str, Any]:
    """What `pack` noted; empty where FUSIONBENCH_DATA names no pack."""
    folder = packed_folder()
    manifest = folder / MANIFEST if folder else None
    if manifest is None or not manifest.exists():
        return {}
    return dict(json.loads(manifest.read_text()))


def check_packed(encoders: Mapping[str, EncoderCard]) -> None:
    """UserError if a packed task was resized for another encoder than the one that reads it.

    `encoders`: the encoder of each task, by the task's name.
    """
    noted = _manifest()
    for task in noted.get("resized", ()):
        card = encoders.get(task)
        if card is None:
            continue
        found = _seen(preprocessing(card.name), card.size) if not card.module else {}
        if found != noted["images"]:
            raise UserError(
                f"{task} was packed for {noted['encoder']} at {noted['size']} pixels: its images "
                f"are not those that {card.name} would see at {card.size}",
                f"fusionbench pack --tasks {task} --encoder '{card.name}' --size {card.size} OUT",
            )


def _seen(how: Preprocessing, size: int) -> dict[str, Any]:
    """What decides the pixels of a resized image."""
    return {"size": size, "interpolation": how.interpolation, "fit": how.fit, "crop": how.crop}


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


def train_pixels(task: str, data: TaskData) -> list[str]:
    """Hash of the image of each training example, before a pack has made it smaller.

    Raises UserError for a pack of an earlier version, which has no such hashes.
    """
    if task not in packed_tasks():
        return _pixel_hashes(data)
    home = packed_folder() or Path()
    stored = json.loads(lzma.decompress((home / "tasks" / f"{task}.json.xz").read_bytes()))
    if "train_pixels" not in stored:
        raise UserError(f"{home}: {task} was packed by an earlier version", "pack it again")
    return [str(one) for one in stored["train_pixels"]]


def _pixel_hashes(data: TaskData) -> list[str]:
    """Shape and bytes of each training image, hashed."""
    shape = canonical(list(data.images.shape[1:])).encode()
    rows = np.unique(data.train.images)
    found = {
        int(row): hashlib.sha256(shape + np.ascontiguousarray(data.images[row]).tobytes())
        for row in rows
    }
    return [found[int(row)].hexdigest()[:32] for row in data.train.images]


def _split(values: dict[str, list[str] | list[int]]) -> Split:
    return Split(
        items=tuple(str(item) for item in values["items"]),
        images=np.array(values["images"], dtype=np.int64),
        questions=tuple(str(question) for question in values["questions"]),
        answers=np.array(values["answers"], dtype=np.int64),
    )


_BATCH = 256
Pixels = UInt8[np.ndarray, "image height width 3"]


def pack(tasks: Sequence[TaskCard], encoder: str, *, size: int, out: Path) -> tuple[int, int]:
    """Write the tasks' data, images no larger than the encoder reads them, and its weights.

    Gives the number of tasks written and the folder's size in bytes. What travels with the
    package is not copied: tasks that are rendered (they need no other package) and `nano`.
    Raises ValueError for an unknown encoder, OSError if its weights cannot be fetched.
    """
    # It loads torch, and planning imports this module.
    from fusionbench.encoders.fetch import fetch

    weights = fetch(encoder)
    seen = _seen(preprocessing(encoder), size)
    hashes, resized = {}, []
    for card in tasks:
        if not card.needs:
            continue
        data = load_data(card)
        images = _fitted(data.images, **seen)
        if images.shape != data.images.shape:
            resized.append(card.name)
        _write_task(out / "tasks", card.name, data, images)
        hashes[card.name] = task_hash(card)
    if encoder != "nano":
        _copy_weights(weights, out / "weights")
    # Written last: a folder without it is no pack.
    manifest = {"tasks": hashes, "encoder": encoder, "size": size}
    manifest |= {"images": seen, "resized": resized}
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


def _fitted(images: Pixels, *, size: int, fit: str, crop: float, interpolation: str) -> Pixels:
    """Images as the encoder resizes them; small ones stay as they are."""
    import torch

    from fusionbench.encoders.vit import fitted, short_side

    how = partial(fitted, size=size, fit=fit, crop=crop, interpolation=interpolation)
    least = short_side(size, fit, crop)
    sides = images.shape[1:3]
    if (min(sides) if fit == "crop" else max(sides)) <= least:
        return images
    parts = torch.split(torch.from_numpy(images), _BATCH)
    return np.concatenate([how(part).numpy() for part in parts])


def _write_task(home: Path, task: str, data: TaskData, images: Pixels) -> None:
    grey = bool((images[..., 0:1] == images).all())
    stored = np.ascontiguousarray(images[..., 0] if grey else images)
    values = {
        "shape": list(stored.shape),
        "grey": grey,
        "answers": list(data.answers),
        "splits": {name: _plain(data.split(name)) for name in SPLITS},
        "train_pixels": _pixel_hashes(data),
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
