"""MME: two yes-or-no questions an image; a task scores 100 acc + 100 acc+ points.

acc is the share of right answers, acc+ the share of images with both answers right (Fu et al.,
2023). Source: the authors' `eval_tool/calculation.py` as kept in Mema at 23a68ed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusionbench.api.errors import UserError
from fusionbench.metrics.common import Measures, answered, grouped, mean

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
_LOOKED_AT = 4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction and its label ("Yes" or "No", any case) with task and image."""

    task: str
    image: str
    label: str
    prediction: str


def parse(prediction: str) -> Literal["yes", "no", "other"]:
    """The first of yes and no that occurs in the first four characters, in any case.

    "eyes" and " yes" are yes, "none" and "know" are no, "the yes" is other.
    """
    start = prediction.lower()[:_LOOKED_AT]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def score(answer: Answer) -> float:
    """1 if the parsed prediction is the label, else 0. Raises UserError for an unknown label."""
    label = answer.label.lower()
    if label not in ("yes", "no"):
        raise UserError(f"MME {answer.task}: label {answer.label!r}", "allowed: Yes, No")
    return float(parse(answer.prediction) == label)


def pairs(answers: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """The two questions of each image of one task: consecutive answers.

    Raises UserError for an odd number of answers and for a pair that names two images.
    """
    if len(answers) % 2:
        raise UserError(
            f"MME {answers[0].task}: {len(answers)} questions", "each image has two questions"
        )
    found = list(zip(answers[::2], answers[1::2], strict=True))
    for first, second in found:
        if first.image != second.image:
            raise UserError(
                f"MME {first.task}: {first.image!r} and {second.image!r} stand side by side",
                "keep the two questions of an image together",
            )
    return found


def both_right(first: Answer, second: Answer) -> float:
    """1 if both answers about an image are right, else 0."""
    return min(score(first), score(second))


def measures(answers: Sequence[Answer]) -> Measures:
    """`perception` and `cognition` in points, acc and acc+ over all and by task.

    A total is None unless all of its tasks were asked. The answers of a task may stand between
    those of others; `score/task` is in points, 0 to 200. Raises UserError for no answers, an
    unknown label, an odd number of questions of a task, or a pair of different images.
    """
    by_task = grouped((one.task for one in answered(answers)), answers)
    both = {task: [both_right(*pair) for pair in pairs(group)] for task, group in by_task.items()}
    tasks: Measures = {}
    points: dict[str, float] = {}
    for task, group in by_task.items():
        right = [score(one) for one in group]
        accuracy, plus = sum(right) / len(right), sum(both[task]) / len(both[task])
        points[task] = 100 * accuracy + 100 * plus
        tasks |= {
            f"score/{task}": points[task],
            f"acc/{task}": accuracy,
            f"acc_plus/{task}": plus,
            f"other/{task}": sum(parse(one.prediction) == "other" for one in group),
        }
    return {
        "perception": _total(points, PERCEPTION),
        "cognition": _total(points, COGNITION),
        "acc": mean(map(score, answers)),
        "acc_plus": mean(one for task in both.values() for one in task),
        "other": sum(parse(one.prediction) == "other" for one in answers),
        "questions": len(answers),
    } | tasks


def _total(points: dict[str, float], tasks: Sequence[str]) -> float | None:
    known = [points[task] for task in tasks if task in points]
    return sum(known) if len(known) == len(tasks) else None
