"""POPE: is the object in the image? Accuracy and F1 of "yes", by category and over all.

Source: LLaVA, `llava/eval/eval_pope.py` at c121f04 (Mema's file is identical), and lmms-eval,
`tasks/pope/utils.py`. LLaVA's published number is the mean F1 of the three categories.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fusionbench.api.errors import UserError
from fusionbench.metrics.common import Measures, answered, grouped, mean

CATEGORIES = ("random", "popular", "adversarial")
_NEGATIVE = {"No", "not", "no"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, its label ("yes" or "no") and its category."""

    category: str
    label: str
    prediction: str


@dataclass(frozen=True)
class Counts:
    """Confusion counts with "yes" as the positive class."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def questions(self) -> int:
        """Number of answers."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return _share(self.tp + self.tn, self.questions)

    @property
    def precision(self) -> float | None:
        """Share of right answers among "yes" answers; None without a "yes" answer."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Share of "yes" answers among "yes" labels; None without a "yes" label."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

        The official script divides by zero without a "yes" answer; this is 0 there, and None
        where there is no "yes" label either.
        """
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def yes_ratio(self) -> float | None:
        """Share of "yes" answers."""
        return _share(self.tp + self.fp, self.questions)


def parse(prediction: str) -> Literal["yes", "no"]:
    """LLaVA's reading: "no" if a word of the first sentence is No, no or not, else "yes".

    The sentence ends at the first dot, commas are deleted, and only single blanks separate words:
    `NO`, `no!` and an empty text are "yes".
    """
    sentence = prediction.split(".", 1)[0].replace(",", "")
    return "no" if _NEGATIVE.intersection(sentence.split(" ")) else "yes"


def parse_lmms_eval(prediction: str) -> str:
    """lmms-eval's reading: the whole text, lower-cased and stripped; `yes.` is no "yes"."""
    return prediction.lower().strip()


def score(answer: Answer) -> float:
    """1 if LLaVA's reading of the prediction is the label, else 0."""
    return float(parse(answer.prediction) == checked(answer.label))


def checked(label: str) -> str:
    """The label. Raises UserError for another value than "yes" or "no"."""
    if label not in ("yes", "no"):
        raise UserError(f"POPE: label {label!r}", "allowed: yes, no")
    return label


def counts(parsed: Sequence[str], labels: Sequence[str]) -> Counts:
    """Counts of parsed answers, one for each label.

    Raises UserError if their numbers differ: the official script drops the surplus from the counts
    and keeps it in the share of "yes".
    """
    if len(parsed) != len(labels):
        raise UserError(
            f"POPE: {len(parsed)} answers for {len(labels)} labels", "one answer for each label"
        )
    pairs = list(zip(parsed, map(checked, labels), strict=True))
    return Counts(*(pairs.count(pair) for pair in _CELLS))


_CELLS = (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))


def measures(answers: Sequence[Answer]) -> Measures:
    """Each category (`f1/random`, ...), the mean over categories, and all questions pooled.

    `lmms_eval_*` are lmms-eval's readings over all questions; its `yes_ratio` is that of the
    labels. Raises UserError for no answers or an unknown label.
    """
    groups = grouped((one.category for one in answered(answers)), answers)
    by_category = {name: _counted(group) for name, group in groups.items()}
    pooled = _counted(answers)
    found: Measures = {
        "questions": len(answers),
        "accuracy_mean": _mean(one.accuracy for one in by_category.values()),
        "f1_mean": _mean(one.f1 for one in by_category.values()),
        "accuracy_pooled": pooled.accuracy,
        "f1_pooled": pooled.f1,
        "yes_ratio_pooled": pooled.yes_ratio,
    }
    for name, one in by_category.items():
        found |= {
            f"questions/{name}": one.questions,
            f"accuracy/{name}": one.accuracy,
            f"f1/{name}": one.f1,
            f"precision/{name}": one.precision,
            f"recall/{name}": one.recall,
            f"yes_ratio/{name}": one.yes_ratio,
        }
    return found | _lmms_eval(answers)


def _counted(answers: Sequence[Answer]) -> Counts:
    return counts([parse(one.prediction) for one in answers], [one.label for one in answers])


def _lmms_eval(answers: Sequence[Answer]) -> Measures:
    """lmms-eval's five numbers; a text that is neither yes nor no enters the accuracy only."""
    pairs = [(parse_lmms_eval(one.prediction), checked(one.label)) for one in answers]
    tp, fp, _, fn = (pairs.count(cell) for cell in _CELLS)
    return {
        "lmms_eval_accuracy": mean(float(said == label) for said, label in pairs),
        "lmms_eval_precision": _share(tp, tp + fp) or 0.0,
        "lmms_eval_recall": _share(tp, tp + fn) or 0.0,
        "lmms_eval_f1": _share(2 * tp, 2 * tp + fp + fn) or 0.0,
        "lmms_eval_yes_ratio": mean(float(label == "yes") for _, label in pairs),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean over categories, None if it is undefined in one of them."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return mean(known) if len(known) == len(listed) else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
