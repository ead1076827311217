"""A task's data as cells need it: identity for planning, bundles for training. No torch here.

A bundle is a task's splits cut to a budget, with image rows counted within the cut. Cells read
bundles and hidden states only; images are touched once, when they are encoded.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from fusionbench.api.tasks import SPLITS, ScoredItems, Split, SplitName, TaskData
from fusionbench.records.cell import Budget, canonical, json_object
from fusionbench.records.files import (
    cache_dir,
    drop_damaged,
    sealed,
    unsealed,
    why,
    write_atomic,
)
from fusionbench.records.pictures import ExamplePictures, draw_sheet

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One split of a bundle."""

    items: tuple[str, ...]
    groups: tuple[str, ...]
    """The image group of each example: questions about one image share it."""
    rows: Int[np.ndarray, " example"]
    """Row of the image in the bundle's image set and in every feature file."""
    questions: Int[np.ndarray, " example"]
    """Index into `Bundle.questions`."""
    answers: Int[np.ndarray, " example"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.items)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A task cut to a budget."""

    answers: tuple[str, ...]
    questions: tuple[str, ...]
    """Distinct questions."""
    train: Examples
    val: Examples
    test: Examples
    images: str
    """Hash of the image set, the key of its features."""
    count: int
    """Images in the set."""

    def split(self, name: SplitName) -> Examples:
        """The examples of that split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def scored(self, name: SplitName) -> ScoredItems:
        """The examples of that split with the texts of their questions and true answers."""
        examples = self.split(name)
        return ScoredItems(
            names=examples.items,
            groups=examples.groups,
            questions=tuple(self.questions[row] for row in examples.questions),
            answers=tuple(self.answers[row] for row in examples.answers),
        )


def cut(
    task: str, data: TaskData, budget: Budget
) -> tuple[Bundle, UInt8[np.ndarray, "image height width 3"]]:
    """The bundle a budget asks for, and its images in bundle order."""
    limits = {"train": budget.train_items, "val": budget.val_items, "test": budget.test_items}
    kept = {name: limits[name] or len(data.split(name)) for name in SPLITS}
    used = np.concatenate([data.split(name).images[: kept[name]] for name in SPLITS])
    images = np.unique(used)
    row_of = np.zeros(len(data.images), dtype=np.int64)
    row_of[images] = np.arange(len(images))
    asked = sorted({q for name in SPLITS for q in data.split(name).questions[: kept[name]]})
    number = {question: index for index, question in enumerate(asked)}
    parts = {name: _examples(task, data.split(name), kept[name], row_of, number) for name in SPLITS}
    pixels = np.ascontiguousarray(data.images[images])
    bundle = Bundle(
        answers=data.answers,
        questions=tuple(asked),
        **parts,
        images=_hash_pixels(pixels),
        count=len(images),
    )
    return bundle, pixels


def bundle_path(task: str, data_hash: str, budget: Budget) -> Path:
    """Where the bundle of this task and budget is cached."""
    limits = [budget.train_items, budget.val_items, budget.test_items]
    key = hashlib.sha256(canonical([_FORMAT, task, data_hash, limits]).encode()).hexdigest()[:20]
    return cache_dir("bundles", f"{task}-{key}.json")


def keep(task: str, data_hash: str, data: TaskData, budget: Budget) -> None:
    """Leave the cut in the cache: the bundle, and the images until they are encoded."""
    bundle, pixels = cut(task, data, budget)
    file, kept = io.BytesIO(), _kept(bundle)
    np.save(file, pixels)
    write_atomic(kept, sealed(kept, file.getvalue()))
    write_bundle(bundle, bundle_path(task, data_hash, budget))


def kept_images(bundle: Bundle) -> UInt8[np.ndarray, "image height width 3"] | None:
    """What `keep` has left of this bundle's images, or None; a damaged file is removed."""
    file = _kept(bundle)
    try:
        pixels = np.load(io.BytesIO(unsealed(file)), allow_pickle=False)
        if _hash_pixels(pixels) != bundle.images:
            raise ValueError("its images are not those of the bundle")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        drop_damaged(file, why(error))
        return None
    return np.asarray(pixels)


def shown(
    bundle: Bundle,
    images: UInt8[np.ndarray, "image height width 3"],
    task: str,
    data_hash: str,
    items: str,
) -> ExamplePictures:
    """Questions, answers and small pictures of the bundle's test examples."""
    test = bundle.test
    texts, questions = np.unique(test.questions, return_inverse=True)
    tiles, (width, height), columns, sheet = draw_sheet(images, test.rows)
    return ExamplePictures(
        task=task,
        data=data_hash,
        items=items,
        texts=tuple(bundle.questions[row] for row in texts),
        questions=tuple(map(int, questions)),
        answers=bundle.answers,
        right=tuple(map(int, test.answers)),
        tiles=tiles,
        width=width,
        height=height,
        columns=columns,
        sheet=sheet,
    )


def drop_images(bundle: Bundle) -> None:
    """They are encoded: whoever needs another layer of them reads the task again."""
    # A complete cache may be read-only.
    with suppress(OSError):
        _kept(bundle).unlink(missing_ok=True)


def _kept(bundle: Bundle) -> Path:
    return cache_dir("images", f"{bundle.images[:24]}.npy")


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Store a bundle as JSON, atomically."""
    values = {
        "answers": bundle.answers,
        "questions": bundle.questions,
        "images": bundle.images,
        "count": bundle.count,
        "splits": {name: _plain(bundle.split(name)) for name in SPLITS},
    }
    write_atomic(path, sealed(path, json.dumps(values).encode()))


def cached_bundle(path: Path) -> Bundle | None:
    """The bundle of this file; None without one. A damaged file is removed."""
    try:
        return read_bundle(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        drop_damaged(path, why(error))
        return None


def read_bundle(path: Path) -> Bundle:
    """Read a bundle back.

    Raises FileNotFoundError if it was never written, ValueError if it is damaged, OSError if it
    cannot be read.
    """
    values = json_object(unsealed(path).decode())
    parts = {name: _from_plain(values["splits"][name]) for name in SPLITS}
    return Bundle(
        answers=tuple(values["answers"]),
        questions=tuple(values["questions"]),
        **parts,
        images=values["images"],
        count=values["count"],
    )


def _examples(
    task: str, split: Split, count: int, row_of: Int[np.ndarray, " image"], number: dict[str, int]
) -> Examples:
    count = min(count, len(split))
    images = split.images[:count]
    return Examples(
        items=split.items[:count],
        groups=tuple(f"{task}/image-{image}" for image in images),
        rows=row_of[images],
        questions=np.array([number[q] for q in split.questions[:count]], dtype=np.int64),
        answers=np.asarray(split.answers[:count], dtype=np.int64),
    )


def _hash_pixels(pixels: UInt8[np.ndarray, "image height width 3"]) -> str:
    digest = hashlib.sha256(canonical(list(pixels.shape)).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()[:32]


def _plain(examples: Examples) -> dict[str, Sequence[str] | list[int]]:
    return {
        "items": examples.items,
        "groups": examples.groups,
        "rows": examples.rows.tolist(),
        "questions": examples.questions.tolist(),
        "answers": examples.answers.tolist(),
    }


def _from_plain(values: dict[str, list[str] | list[int]]) -> Examples:
    return Examples(
        items=tuple(str(item) for item in values["items"]),
        groups=tuple(str(group) for group in values["groups"]),
        rows=np.array(values["rows"], dtype=np.int64),
        questions=np.array(values["questions"], dtype=np.int64),
        answers=np.array(values["answers"], dtype=np.int64),
    )
