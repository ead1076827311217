"""Groups of items: questions about one image, in one task or in several, are one item.

An image of a task with I questions on G images counts x = mean + (G / I) * sum(d - mean) over its
questions d. These G numbers have the same mean as the I questions for any group sizes and
are analysed as items. The map is linear in d, so the x of a difference is
the difference of the x.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from fusionbench.stats.estimate import two_way_layout


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Outcomes of one task: scores, or differences of two methods, and its weight in the suite.

    `groups` names the image of each item. The same name in two tasks means the same image.
    """

    values: Real[np.ndarray, "*batch seed item"]
    groups: Shaped[np.ndarray, " item"]
    weight: float = 1.0

    @cached_property
    def table(self) -> Float[np.ndarray, "*batch seed item"]:
        """The values as checked doubles. ValueError on NaN, or if the groups do not fit."""
        table = two_way_layout("values", self.values)
        refuse_wrong_groups(table, self.groups)
        return table

    @cached_property
    def images(self) -> Shaped[np.ndarray, " image"]:
        return np.unique(self.groups)

    @property
    def one_item_per_image(self) -> bool:
        return len(self.images) == len(self.groups)


def by_group(
    values: Real[np.ndarray, "*batch seed item"], groups: Shaped[np.ndarray, " item"]
) -> Float[np.ndarray, "*batch seed group"]:
    """One number per (seed, image)."""
    return merge([TaskScores(values=values, groups=groups)])


def merge(tasks: Sequence[TaskScores]) -> Float[np.ndarray, "*batch seed group"]:
    """One weighted (seed, image) table for tasks that share images; its mean is the weighted sum.

    Without it an image in two tasks would count as two independent ones. ValueError if the tasks
    have different numbers of seeds.
    """
    refuse_unequal_seeds(tasks)
    if len(tasks) == 1 and tasks[0].one_item_per_image:
        return np.asarray(tasks[0].weight * tasks[0].table)
    images = np.unique(np.concatenate([task.images for task in tasks]))
    merged = np.zeros((*tasks[0].table.shape[:-1], len(images)))
    for task in tasks:
        grand = task.table.mean(axis=(-2, -1), keepdims=True)
        order, starts = _runs_of_images(task.groups)
        sums = np.add.reduceat((task.table - grand)[..., order], starts, axis=-1)
        share = task.weight * len(images) / task.table.shape[-1]
        merged[..., np.searchsorted(images, task.images)] += share * sums
        merged += task.weight * grand
    return merged


def discordant_groups(
    values: Shaped[np.ndarray, "*batch seed item"], groups: Shaped[np.ndarray, " item"]
) -> Int[np.ndarray, "*batch"]:
    """How many images have a question on which any seed differs from zero."""
    differs = (np.asarray(values) != 0).any(axis=-2)
    order, starts = _runs_of_images(groups)
    if len(starts) == len(order):
        return np.asarray(differs.sum(axis=-1))
    return np.asarray(np.logical_or.reduceat(differs[..., order], starts, axis=-1).sum(axis=-1))


def _runs_of_images(
    groups: Shaped[np.ndarray, " item"],
) -> tuple[Int[np.ndarray, " item"], Int[np.ndarray, " image"]]:
    """An order in which the items of an image are adjacent, and the start of each image in it."""
    order = np.argsort(groups, kind="stable")
    ordered = np.asarray(groups)[order]
    return order, np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def refuse_unequal_seeds(tasks: Sequence[TaskScores]) -> None:
    counts = [np.shape(task.values)[-2] for task in tasks]
    if not counts or len(set(counts)) > 1:
        raise ValueError(f"tasks that are combined need the same number of seeds, got {counts}")


def refuse_wrong_groups(
    table: Float[np.ndarray, "*batch seed item"], groups: Shaped[np.ndarray, "..."]
) -> None:
    items = table.shape[-1]
    if np.shape(groups) != (items,):
        raise ValueError(f"groups must name one image per item ({items}), got {np.shape(groups)}")
    if (groups == groups[0]).all():
        raise ValueError("all items belong to one image: there is nothing to estimate noise from")
