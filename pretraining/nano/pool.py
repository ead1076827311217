"""The images that `nano` is pretrained on, none of which a task validates or tests on.

Procedural pictures; for tasks that are rendered, pictures from seeds that no task uses (the
function `extra_images(count, *, seed)` of the task's module); for all others their train split.
"""

import hashlib
import logging
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.tasks import TaskData
from fusionbench.registry.catalog import TaskCard, read_catalog
from fusionbench.registry.plugins import load_task
from nano.images import render

Images = UInt8[np.ndarray, "image height width 3"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """How many images from where."""

    procedural: int = 3000
    per_task: int = 4000
    """At most so many images of a task's train split, from its front."""
    rendered: int = 7000
    """Pictures from unused seeds, per module of rendered tasks."""
    seed: int = 0
    skip: tuple[str, ...] = ()
    """Globs of tasks to leave out: those whose licence does not allow it."""


def pool(plan: PoolPlan) -> Iterator[tuple[str, Images]]:
    """Source and images, one source at a time, less every image that any task holds out."""
    # All tasks, skipped ones too: what one of them tests on must not come in through another.
    forbidden = held_out_hashes(load_task(card).load() for card in local_tasks(()))
    for source, images in sources(plan):
        yield source, without(images, forbidden)


def sources(plan: PoolPlan) -> Iterator[tuple[str, Images]]:
    """Source and images as they come."""
    yield "procedural", render(plan.procedural, seed=plan.seed)
    done = set()
    for card in local_tasks(plan.skip):
        task = load_task(card)
        module = sys.modules[type(task).__module__]
        extra_images = getattr(module, "extra_images", None)
        if extra_images is None:
            yield card.name, train_images(task.load(), plan.per_task)
        elif module.__name__ not in done:
            done.add(module.__name__)
            yield f"{card.family}, seeds of no task", extra_images(plan.rendered, seed=plan.seed)


def local_tasks(skip: Collection[str]) -> list[TaskCard]:
    """Tasks of the suite with data on this machine."""
    cards = read_catalog().tasks.values()
    return [
        card
        for card in cards
        if card.available
        and card.in_suite
        and not card.encoder
        and not any(fnmatch(card.name, glob) for glob in skip)
    ]


def train_images(data: TaskData, limit: int) -> Images:
    """The first distinct images of the train split."""
    rows = np.array(list(dict.fromkeys(data.train.images.tolist()))[:limit], dtype=np.int64)
    return data.images[rows]


def held_out_hashes(datasets: Iterator[TaskData]) -> set[str]:
    """Hashes of every image that some task validates or tests on."""
    hashes: set[str] = set()
    for data in datasets:
        rows = np.unique(np.concatenate([data.val.images, data.test.images]))
        hashes.update(image_hash(data.images[row]) for row in rows)
    return hashes


def without(images: Images, forbidden: Collection[str]) -> Images:
    """The images whose hash is not forbidden."""
    keep = np.array([image_hash(image) not in forbidden for image in images], dtype=bool)
    if not keep.all():
        log.info("left out %d held-out images", int((~keep).sum()))
    return images[keep]


def image_hash(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """SHA-256 of an image's side lengths and bytes."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
