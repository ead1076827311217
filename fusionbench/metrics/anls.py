"""ANLS (average normalised Levenshtein similarity) of DocVQA and MP-DocVQA, and exact accuracy.

Sources: Mema, `llava/eval/metrics.py` and `eval_from_predictions.py` at fa1cc53 (the MP-DocVQA
evaluator); LLaVA, `llava/eval/m4c_evaluator.py` at c121f04 (`m4c_*`, ST-VQA). Similarity below 0.5
counts as 0 (Biten et al., ICDAR 2019, equation 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionbench.api.errors import UserError
from fusionbench.metrics import evalai
from fusionbench.metrics.common import Measures, answered, mean

THRESHOLD = 0.5
NOT_ANSWERABLE = "not-answerable"
_NONE = "none"
_ABSTAIN = (_NONE, "NA")
"""`NA` matches in the case-sensitive reading only: predictions are lower-cased first."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, its references, and the type of the answer, `not-answerable` or any other."""

    prediction: str
    answers: tuple[str, ...]
    answer_type: str | None = None


def distance(first: str, second: str) -> int:
    """Levenshtein distance over Unicode code points."""
    row = list(range(len(second) + 1))
    for i, sign in enumerate(first, 1):
        left, above = i, row[0]
        row[0] = i
        for j, other in enumerate(second, 1):
            left = min(left + 1, row[j] + 1, above + (sign != other))
            above, row[j] = row[j], left
    return row[-1]


def similarity(prediction: str, references: Sequence[str]) -> float:
    """Largest 1 - distance / length of the longer text over references; 0 below 0.5.

    Two empty texts are equal: 1. The official ST-VQA evaluator divides by zero there.
    """
    nearest = max(
        1 - distance(one, prediction) / (max(len(one), len(prediction)) or 1) for one in references
    )
    return nearest if nearest >= THRESHOLD else 0.0


def _forms(answer: Answer, case_sensitive: bool) -> tuple[str, list[str]]:
    """Prediction and references, stripped and lower-cased. Raises UserError without reference."""
    if not answer.answers:
        raise UserError("ANLS: a question without a reference answer", "give at least one")
    texts = [text.strip() for text in (answer.prediction, *answer.answers)]
    prediction, *references = texts if case_sensitive else [text.lower() for text in texts]
    return prediction, references


def anls(answer: Answer, *, case_sensitive: bool = False) -> float:
    """ANLS of one answer. An empty text is 0, and so is `none` to a question with an answer."""
    prediction, references = _forms(answer, case_sensitive)
    if not prediction:
        return 0.0
    if answer.answer_type == NOT_ANSWERABLE:
        return float(prediction in _ABSTAIN)
    return 0.0 if prediction == _NONE else similarity(prediction, references)


def accuracy(answer: Answer, *, case_sensitive: bool = False) -> float:
    """1 if the prediction equals a reference; for `not-answerable` if it is empty or `none`."""
    prediction, references = _forms(answer, case_sensitive)
    if answer.answer_type == NOT_ANSWERABLE:
        return float(prediction in ("", *_ABSTAIN))
    return float(prediction != _NONE and prediction in references)


def score(answer: Answer) -> float:
    """ANLS of one answer, 0 to 1. Raises UserError without a reference."""
    return anls(answer)


def m4c_anls(answer: Answer) -> float:
    """ANLS without special cases, as the ST-VQA evaluator computes it."""
    return similarity(*_forms(answer, case_sensitive=False))


def m4c_accuracy(answer: Answer) -> float:
    """1 if prediction and a reference agree after EvalAI's normalisation, else 0."""
    prediction = evalai.normalise(answer.prediction)
    return float(prediction in [evalai.normalise(text) for text in answer.answers])


READINGS: dict[str, Callable[[Answer], float]] = {
    "anls": anls,
    "accuracy": accuracy,
    "anls_case_sensitive": lambda answer: anls(answer, case_sensitive=True),
    "accuracy_case_sensitive": lambda answer: accuracy(answer, case_sensitive=True),
    "m4c_anls": m4c_anls,
    "m4c_accuracy": m4c_accuracy,
}


def measures(answers: Sequence[Answer]) -> Measures:
    """The mean of each reading and the number of questions. Raises UserError for no answers."""
    found: Measures = {"questions": len(answered(answers))}
    return found | {name: mean(map(rule, answers)) for name, rule in READINGS.items()}
