"""TextVQA: soft accuracy over ten references after EvalAI's normalisation.

Source: `TextVQAAccuracyEvaluator` in LLaVA, `llava/eval/m4c_evaluator.py` at c121f04.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics import evalai
from fusionbench.metrics.common import Measures, answered, mean


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction and its ten reference answers."""

    prediction: str
    answers: tuple[str, ...]


def parse(text: str) -> str:
    """The normal form of a prediction or reference."""
    return evalai.normalise(text)


def score(answer: Answer) -> float:
    """Soft accuracy, 0 to 1. Raises UserError if there are not ten references."""
    references = [parse(text) for text in evalai.ten(answer.answers)]
    return evalai.soft_accuracy(parse(answer.prediction), references)


def measures(answers: Sequence[Answer]) -> Measures:
    """`accuracy` and the number of questions. Raises UserError for no answers."""
    return {
        "accuracy": mean(score(one) for one in answered(answers)),
        "questions": len(answers),
    }
