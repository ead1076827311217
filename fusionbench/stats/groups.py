"""The unit is the image: questions about one image, in one task or in several, are one item.

An image of a task with I questions on G images counts x = mean + (G / I) * sum(d - mean) over its
questions d. These G numbers have the same mean as the I questions, whatever the group sizes, and
everything that treats them as items is right. The map is linear in d, so the x of a difference is
the difference of the x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from fusionbench.stats.refusals import two_way_layout


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Outcomes of one task: scores, or differences of two methods, and its weight in the suite.

    `groups` names the image of each item. The same name in two tasks means the same image.
    """

    values: Real[np.ndarray, "*batch seed item"]
    groups: Shaped[np.ndarray, " item"]
    weight: float = 1.0


def by_group(
    values: Real[np.ndarray, "*batch seed item"], groups: Shaped[np.ndarray, " item"]
) -> Float[np.ndarray, "*batch seed group"]:
    """One number per (seed, image), images in sorted order."""
    return merge([TaskScores(values=values, groups=groups)])


def merge(tasks: Sequence[TaskScores]) -> Float[np.ndarray, "*batch seed group"]:
    """One weighted (seed, image) table for tasks that share images; its mean is the weighted sum.

    Without it an image in two tasks would count as two independent ones. ValueError if the tasks
    have different numbers of seeds.
    """
    refuse_unequal_seeds(tasks)
    images = np.unique(np.concatenate([np.asarray(task.groups) for task in tasks]))
    first = np.shape(tasks[0].values)
    merged = np.zeros((*first[:-1], len(images)))
    for task in tasks:
        table = two_way_layout("values", task.values)
        refuse_wrong_groups(table, task.groups)
        grand = table.mean(axis=(-2, -1), keepdims=True)
        position, sums = sum_by_group(table - grand, task.groups, images)
        share = task.weight * len(images) / table.shape[-1]
        merged[..., position] += share * sums
        merged += task.weight * grand
    return merged


def sum_by_group(
    values: Float[np.ndarray, "*batch seed item"],
    groups: Shaped[np.ndarray, " item"],
    images: Shaped[np.ndarray, " image"],
) -> tuple[Int[np.ndarray, " group"], Float[np.ndarray, "*batch seed group"]]:
    """Sum over the items of each image present, with its position in the sorted `images`."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(np.asarray(groups)[order], return_index=True)
    sums = np.add.reduceat(values[..., order], starts, axis=-1)
    return np.searchsorted(images, present), sums


def discordant_groups(
    values: Shaped[np.ndarray, "*batch seed item"], groups: Shaped[np.ndarray, " item"]
) -> Int[np.ndarray, "*batch"]:
    """How many images have a question on which any seed differs from zero."""
    differs = (np.asarray(values) != 0).any(axis=-2)
    order = np.argsort(groups, kind="stable")
    starts = np.unique(np.asarray(groups)[order], return_index=True)[1]
    return np.asarray(np.logical_or.reduceat(differs[..., order], starts, axis=-1).sum(axis=-1))


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
    if len(np.unique(groups)) < 2:
        raise ValueError("all items belong to one image: there is nothing to estimate noise from")
