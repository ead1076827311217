"""SEED-Bench: the answered letter in three readings.

Sources: LLaVA, `scripts/convert_seed_for_submission.py` at c121f04 (the text equals the letter);
lmms-eval, `tasks/seedbench/utils.py` (the first character); the authors (Li et al., 2023) rank the
options by the loss of each as the answer. Types 1 to 9 are the image part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics.common import Measures, answered, letters, mean, means


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction (None: unanswered), the true letter, the question type, the option ranked first.

    `ranked` is the index of the option with the smallest loss, None where options were not ranked.
    """

    prediction: str | None
    answer: str
    type: str = ""
    ranked: int | None = None


def equal(prediction: str | None, answer: str) -> float:
    """1 if the text is the letter and nothing else; an unanswered question is wrong."""
    return float(prediction == answer)


def first_letter(prediction: str | None, answer: str) -> float:
    """1 if the first character of the stripped text is the letter."""
    return float((prediction or "").strip()[:1] == answer)


def ranked(index: int | None, answer: str) -> float | None:
    """1 if the option ranked first has the true letter, else 0; None where none was ranked."""
    return None if index is None else float(letters(index + 1)[index] == answer)


def score(answer: Answer) -> float:
    """LLaVA's reading: 1 if the text equals the letter, else 0."""
    return equal(answer.prediction, answer.answer)


def measures(answers: Sequence[Answer]) -> Measures:
    """`accuracy_equal`, `accuracy_first_letter`, `accuracy_ranked`, the first one by type too.

    `accuracy_ranked` is over the questions whose options were ranked (`questions_ranked`), None
    if there are none. Raises UserError for no answers.
    """
    scores = [score(one) for one in answered(answers)]
    rankings = [ranked(one.ranked, one.answer) for one in answers]
    known = [value for value in rankings if value is not None]
    found: Measures = {
        "accuracy_equal": mean(scores),
        "accuracy_first_letter": mean(first_letter(one.prediction, one.answer) for one in answers),
        "accuracy_ranked": mean(known),
        "questions": len(answers),
        "questions_ranked": len(known),
        "unanswered": sum(one.prediction is None for one in answers),
    }
    return found | means("accuracy_equal", [one.type for one in answers], scores)
