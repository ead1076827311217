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
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    version,
)
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.benchmarks import data_hash as data_hash_of
from fusionbench.api.errors import UserError
from fusionbench.api.sources import find_source
from fusionbench.api.tasks import SPLITS, Split, TaskData, data_hash, validate
from fusionbench.harness.bundle import keep
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.models.encoders.catalog import preprocessing
from fusionbench.models.encoders.preprocessing import Preprocessing
from fusionbench.records.cell import Budget, canonical, checksum, json_object
from fusionbench.records.files import (
    ANY_SIZE,
    cache_dir,
    content,
    read_note,
    state_of,
    why,
    write_atomic,
    write_note,
)
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


def planned_data(card: TaskCard, planned: str) -> TaskData:
    """A task's data, which must be what its cells were planned for.

    Raises ValueError if the data has another hash by now; the next run plans for that.
    """
    packed = packed_tasks()
    data = load_data(card)
    found = packed.get(card.name) or data_hash(data)
    if found != planned:
        with suppress(OSError):
            _note(card).unlink(missing_ok=True)
        raise ValueError(
            f"the data of {card.name} has changed: these cells were planned for the data "
            f"{planned[:12]}, and it is {found[:12]} now; run the study again to plan for that"
        )
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
    for name, reason in failed.items():
        raise UserError(f"task {name!r}: {reason}", "leave it out, or mend it")
    return found


def tried_hashes(
    cards: Sequence[TaskCard],
    keep_for: Budget | None = None,
    hear: Callable[[str], None] = lambda _: None,
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """As `task_hashes`, and the reasons of the tasks that cannot be loaded, by name.

    The code of a plug-in is run in a process of its own. `hear` gets a line for each task that is
    read or rendered for the first time on this machine.
    """
    found = {card.name: _known(card) for card in cards}
    unknown = [card for card in cards if not found[card.name]]
    own = [card for card in unknown if card.source == BUILT_IN]
    unknown = [*own, *(card for card in unknown if card.source != BUILT_IN)]
    waiting = chain(
        in_order([partial(_tried, card, keep_for) for card in own]),
        (_tried_apart(card, keep_for) for card in unknown[len(own) :]),
    )
    if unknown:
        once = ", once on this machine" if all(map(_says_what_it_reads, unknown)) else ""
        hear(f"reading or rendering the images of {len(unknown)} tasks{once}")
    looks = []
    for number, (card, look) in enumerate(zip(unknown, waiting, strict=True), start=1):
        looks.append(look)
        hear(f"{number} of {len(unknown)} tasks read: {card.name}")
    pairs = zip(unknown, looks, strict=True)
    failed = {card.name: reason for card, (_, reason) in pairs if reason}
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
    """The noted hash of a task's data; empty where there is none, or none can be trusted."""
    if card.name in (packed := packed_tasks()):
        return packed[card.name]
    return read_note(_note(card)) if _says_what_it_reads(card) else ""


def _says_what_it_reads(card: TaskCard) -> bool:
    """Whether the files are known whose state stands for the data; other plug-ins may read any."""
    return card.source == BUILT_IN or card.reads is not None


def _look(card: TaskCard, budget: Budget | None) -> str:
    data = load_data(card)
    found = data_hash(data)
    write_note(_note(card), found)
    # Without a writable cache folder the data is read each time: slower, never wrong.
    with suppress(OSError):
        if budget is not None:
            keep(card.name, found, data, budget)
    return found


def _note(card: TaskCard) -> Path:
    stamp = canonical([card.name, card.version, sorted(_stamps(card))])
    return cache_dir("data", hashlib.sha256(stamp.encode()).hexdigest()[:24])


def _stamps(card: TaskCard) -> Iterator[list[str | int]]:
    """State of the task's code and data files and of its packages' records."""
    for package in _RENDERERS:
        with suppress(PackageNotFoundError):
            yield [package, version(package)]
    source = Path(card.file)
    for path in [*source.parent.glob(f"{source.stem}.*"), *source.parent.glob("_*.py")]:
        yield [path.name, *state_of(path.stat())]
    for name in card.reads or ():
        read = Path(name).expanduser()
        for path in [read, *sorted(read.rglob("*"))]:
            if path.is_file():
                yield [path.name, *state_of(path.stat())]
    for package in card.needs:
        for record in _package_records(package):
            yield [package, *state_of(record.stat())]


def _package_records(package: str) -> Iterator[Path]:
    for name in _distributions(tuple(sys.path)).get(package, ()):
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:
            continue
        yield from (Path(str(f.locate())) for f in files if f.name == "RECORD")


@lru_cache(maxsize=4)
def _distributions(_path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Distributions by package. Kept, since reading those of one path takes half a second."""
    return packages_distributions()


MANIFEST = "manifest.json"
_RENDERERS = ("numpy", "pillow")
"""Packages whose version decides the pixels of rendered tasks."""
_PACK_AGAIN = "pack the tasks again, or restore the folder"
_LARGEST_JSON = 1 << 28
_LARGEST_IMAGES = 1 << 33
"""Bytes of a packed file of an earlier version, which does not say its size."""


def packed_folder() -> Path | None:
    """The folder that `fusionbench pack` wrote, if FUSIONBENCH_DATA names one.

    Raises UserError if it names none that exists.
    """
    named = os.environ.get("FUSIONBENCH_DATA", "")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"FUSIONBENCH_DATA names {folder}, which is no folder", "`fusionbench pack`"
        )
    return folder


def packed_tasks() -> dict[str, str]:
    """Name of each packed task and the hash of its data before any resizing."""
    tasks: dict[str, str] = _manifest().get("tasks", {})
    return dict(tasks)


def _manifest() -> dict[str, Any]:
    """What `pack` noted; empty where FUSIONBENCH_DATA names no pack. Raises UserError."""
    folder = packed_folder()
    manifest = folder / MANIFEST if folder else None
    if manifest is None or not os.path.lexists(manifest):
        return {}
    try:
        values = json_object(content(manifest).decode())
        check, old = values.pop("checksum", None), "files" not in values
        if not old and check != checksum(values):
            raise ValueError("edited: the checksum does not match the contents")
        if not _is_manifest(values):
            raise ValueError("not what `fusionbench pack` writes")
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest}: {why(error)}", _PACK_AGAIN) from error
    return values


def _is_manifest(values: Mapping[str, Any]) -> bool:
    """Whether the values have the types of a manifest."""
    names = {"tasks", "encoder", "size", "images", "resized"}
    tasks, files = values.get("tasks"), values.get("files", {})
    return (
        names <= set(values) <= {*names, "files"}
        and isinstance(tasks, dict)
        and all(isinstance(one, str) and _HASH.fullmatch(one) for one in tasks.values())
        and isinstance(values["resized"], list)
        and set(values["resized"]) <= set(tasks)
        and isinstance(values["images"], dict)
        and isinstance(files, dict)
        and all(isinstance(one, list) and len(one) == 2 for one in files.values())
    )


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
    values = _packed_values(task)
    stored = _unpacked(f"{task}.images.xz", _LARGEST_IMAGES)
    try:
        images = np.frombuffer(stored, dtype=np.uint8).reshape(values["shape"])
        if values["grey"]:
            images = np.repeat(images[..., None], 3, axis=-1)
        splits = {name: _split(values["splits"][name]) for name in SPLITS}
        data = TaskData(images=images, answers=tuple(values["answers"]), **splits)
        # Images of two splits may be equal once they are as small as the encoder reads them.
        validate(data, apart=False)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: the pack of {task} is damaged: {error}", _PACK_AGAIN) from error
    _require_packed(task, data)
    return data


def _require_packed(task: str, data: TaskData) -> None:
    """Raise UserError for a task of an earlier pack, without hashes, that cannot be checked."""
    noted = _manifest()
    if "files" in noted:
        return
    if task in noted["resized"] or data_hash(data) != noted["tasks"][task]:
        raise UserError(
            f"{packed_folder()}: the images of {task} cannot be compared with the hash of its data",
            "it was packed by an earlier version, or has changed: pack it again",
        )


def _packed_values(task: str) -> dict[str, Any]:
    name = f"{task}.json.xz"
    try:
        return json_object(_unpacked(name, _LARGEST_JSON).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{packed_folder()}: {name} is no text", _PACK_AGAIN) from error


def _unpacked(name: str, largest: int) -> bytes:
    """A file of the pack. Raises UserError if it is damaged or larger than the manifest says."""
    file = (packed_folder() or Path()) / "tasks" / name
    digest, size = _manifest().get("files", {}).get(name, (None, largest))
    try:
        packed = content(file, ANY_SIZE)
        if digest is not None and hashlib.sha256(packed).hexdigest() != digest:
            raise ValueError("damaged: its hash is not that of the manifest")
        opener = lzma.LZMADecompressor()
        found = opener.decompress(packed, max_length=size)
        if not opener.eof and opener.decompress(b"", max_length=1):
            raise ValueError(f"it holds more than {size} bytes")
        if not opener.eof:
            raise ValueError("truncated")
    except (OSError, ValueError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file}: {why(error)}", _PACK_AGAIN) from error
    return found


def train_pixels(task: str, data: TaskData) -> list[str]:
    """Hash of the image of each training example, before a pack has made it smaller.

    Raises UserError for a pack of an earlier version, which has no such hashes.
    """
    if task not in packed_tasks():
        return _pixel_hashes(data)
    home = packed_folder() or Path()
    stored = _packed_values(task)
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
_HASH = re.compile(r"[0-9a-f]{64}")
Pixels = UInt8[np.ndarray, "image height width 3"]


def pack(tasks: Sequence[TaskCard], encoder: str, *, size: int, out: Path) -> tuple[int, int]:
    """Write the tasks' data, images no larger than the encoder reads them, and its weights.

    Gives the number of tasks written and the folder's size in bytes. What travels with the
    package is not copied: tasks that are rendered (they need no other package) and `nano`.
    Raises ValueError for an unknown encoder, OSError if its weights cannot be fetched.
    """
    # It loads torch, and planning imports this module.
    from fusionbench.models.encoders.fetch import fetch

    weights = fetch(encoder)
    seen = _seen(preprocessing(encoder), size)
    hashes, resized, files = {}, [], dict[str, tuple[str, int]]()
    for card in tasks:
        if not card.needs:
            continue
        data = load_data(card)
        images = _fitted(data.images, **seen)
        if images.shape != data.images.shape:
            resized.append(card.name)
        files |= _write_task(out / "tasks", card.name, data, images)
        hashes[card.name] = task_hash(card)
    if encoder != "nano":
        _copy_weights(weights, out / "weights")
    # Written last: a folder without it is no pack.
    manifest = {"tasks": hashes, "encoder": encoder, "size": size}
    manifest |= {"images": seen, "resized": resized, "files": files}
    text = json.dumps(manifest | {"checksum": checksum(manifest)}, indent=1)
    write_atomic(out / MANIFEST, text.encode())
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

    from fusionbench.models.encoders.vit import fitted, short_side

    how = partial(fitted, size=size, fit=fit, crop=crop, interpolation=interpolation)
    least = short_side(size, fit, crop)
    sides = images.shape[1:3]
    if (min(sides) if fit == "crop" else max(sides)) <= least:
        return images
    parts = torch.split(torch.from_numpy(images), _BATCH)
    return np.concatenate([how(part).numpy() for part in parts])


def _write_task(
    home: Path, task: str, data: TaskData, images: Pixels
) -> dict[str, tuple[str, int]]:
    """Write the files of a task; returns the hash of each and its size when it is unpacked."""
    grey = bool((images[..., 0:1] == images).all())
    stored = np.ascontiguousarray(images[..., 0] if grey else images)
    values = {
        "shape": list(stored.shape),
        "grey": grey,
        "answers": list(data.answers),
        "splits": {name: _plain(data.split(name)) for name in SPLITS},
        "train_pixels": _pixel_hashes(data),
    }
    written = {}
    for ending, text in (("json", json.dumps(values).encode()), ("images", stored.tobytes())):
        packed = lzma.compress(text)
        write_atomic(home / f"{task}.{ending}.xz", packed)
        written[f"{task}.{ending}.xz"] = (hashlib.sha256(packed).hexdigest(), len(text))
    return written


def _plain(split: Split) -> dict[str, list[str] | list[int]]:
    return {
        "items": list(split.items),
        "images": split.images.tolist(),
        "questions": list(split.questions),
        "answers": split.answers.tolist(),
    }
