"""Counts of each answer whose sums give a measure: resampled images cost one matrix product.

For the measures of POPE, MME and MMBench that are no mean over questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusionbench.metrics import mmbench, mme, pope
from fusionbench.metrics.common import answered

Values = Mapping[str, Float[np.ndarray, "*draw"]]


@dataclass(frozen=True)
class Tally:
    """Counts of each answer, and the readings of their sums; NaN where one is undefined."""

    counts: Float[np.ndarray, "answer count"]
    readings: Callable[[Float[np.ndarray, "*draw count"]], Values]

    def now(self) -> dict[str, float]:
        """The readings of the answers as they are."""
        return {name: float(x) for name, x in self.readings(self.counts.sum(axis=0)).items()}


def pope_tally(answers: Sequence[pope.Answer]) -> Tally:
    """`f1/category`, `f1_mean` and `f1_pooled` of POPE. Raises UserError for no answers."""
    categories = list(dict.fromkeys(one.category for one in answered(answers)))
    counts = np.zeros((len(answers), len(categories), 3))
    for row, one in zip(counts, answers, strict=True):
        said, label = pope.parse(one.prediction) == "yes", pope.checked(one.label) == "yes"
        row[categories.index(one.category)] = said and label, said and not label, label and not said

    def readings(sums: Float[np.ndarray, "*draw count"]) -> Values:
        cells = sums.reshape(*sums.shape[:-1], len(categories), 3)
        each = _f1(cells)
        named = {f"f1/{name}": each[..., i] for i, name in enumerate(categories)}
        return named | {"f1_mean": each.mean(axis=-1), "f1_pooled": _f1(cells.sum(axis=-2))}

    return Tally(counts.reshape(len(answers), -1), readings)


def _f1(cells: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    tp, fp, fn = np.moveaxis(cells, -1, 0)
    return _divided(2 * tp, 2 * tp + fp + fn)


def mme_tally(answers: Sequence[mme.Answer]) -> Tally:
    """`perception` and `cognition` in points, `score/task` and `acc_plus` of MME.

    Raises UserError as `mme.measures` does. Both questions about an image must be of one group.
    """
    tasks = list(dict.fromkeys(one.task for one in answered(answers)))
    where = {task: [i for i, one in enumerate(answers) if one.task == task] for task in tasks}
    counts = np.zeros((len(answers), len(tasks), 4))
    for column, task in enumerate(tasks):
        of_task = [answers[i] for i in where[task]]
        counts[where[task], column, 0] = 1
        counts[where[task], column, 1] = [mme.score(one) for one in of_task]
        counts[where[task][::2], column, 2] = 1
        counts[where[task][::2], column, 3] = [mme.both_right(*pair) for pair in mme.pairs(of_task)]

    def readings(sums: Float[np.ndarray, "*draw count"]) -> Values:
        cells = sums.reshape(*sums.shape[:-1], len(tasks), 4)
        asked, right, images, both = np.moveaxis(cells, -1, 0)
        points = 100 * _divided(right, asked) + 100 * _divided(both, images)
        named = {f"score/{task}": points[..., i] for i, task in enumerate(tasks)}
        return named | {
            "perception": _total(named, mme.PERCEPTION, points[..., 0]),
            "cognition": _total(named, mme.COGNITION, points[..., 0]),
            "acc_plus": _divided(both.sum(axis=-1), images.sum(axis=-1)),
        }

    return Tally(counts.reshape(len(answers), -1), readings)


def _total(
    points: Values, tasks: Sequence[str], like: Float[np.ndarray, "*draw"]
) -> Float[np.ndarray, "*draw"]:
    """Sum over tasks; NaN where one was not asked."""
    unasked = np.full_like(like, np.nan)
    return np.sum([points.get(f"score/{task}", unasked) for task in tasks], axis=0)


def mmbench_tally(answers: Sequence[mmbench.Answer]) -> Tally:
    """`accuracy_circular` of MMBench, NaN without rotations. Raises UserError for no answers.

    All rotations of a question must be of one group.
    """
    right = mmbench.circular(answered(answers), [mmbench.score(one) for one in answers])
    rotated = any(one.rotated for one in answers)
    asked = {id(one) for one in mmbench.representatives(answers)}
    counts = np.array([[1, right[one.question]] if id(one) in asked else [0, 0] for one in answers])

    def readings(sums: Float[np.ndarray, "*draw count"]) -> Values:
        questions = sums[..., 0] if rotated else np.zeros_like(sums[..., 0])
        return {"accuracy_circular": _divided(sums[..., 1], questions)}

    return Tally(counts, readings)


def _divided(
    part: Float[np.ndarray, "*draw"], whole: Float[np.ndarray, "*draw"]
) -> Float[np.ndarray, "*draw"]:
    """The ratio, NaN where the whole is zero."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
