"""ScienceQA: accuracy of the chosen letter, over all questions and over those with an image.

Source: LLaVA, `llava/eval/eval_science_qa.py` at c121f04 (Mema's file is identical).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics.common import Measures, answered, letters, mean

FAILED = "FAILED"
_OPTIONS = ("A", "B", "C", "D", "E")
_STATED = re.compile(r"The answer is ([A-Z]).")
"""The dot is any character: something must follow the letter."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction (None: missing), number of choices, true index, whether there is an image."""

    prediction: str | None
    choices: int
    answer: int
    image: bool

    @property
    def counted_as_image(self) -> bool:
        """Whether it enters the IMG accuracy; the official script leaves a missing answer out."""
        return self.image and self.prediction is not None


def parse(prediction: str | None) -> str:
    """The letter, or FAILED. Nothing is stripped: `A `, `a` and `A.` fail, `A. ` is A.

    In this order: the whole text is a letter A to E; it starts with such a letter, a dot and a
    blank; it says "The answer is X" with one character behind it exactly once.
    """
    text = prediction or ""
    if text in _OPTIONS:
        return text
    if len(text) >= 3 and text[0] in _OPTIONS and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else FAILED


def predicted_index(prediction: str | None, choices: int) -> int:
    """Index of the parsed letter, -1 if it is none of the question's choices."""
    return letters(choices).find(parse(prediction))


def score(answer: Answer) -> float:
    """1 if the parsed letter is that of the true choice, else 0."""
    return float(predicted_index(answer.prediction, answer.choices) == answer.answer)


def measures(answers: Sequence[Answer]) -> Measures:
    """`accuracy` over all, `accuracy_img` over questions with an image, and how many each has.

    Raises UserError for no answers.
    """
    scores = [score(one) for one in answered(answers)]
    with_image = [s for s, one in zip(scores, answers, strict=True) if one.counted_as_image]
    return {
        "accuracy": mean(scores),
        "accuracy_img": mean(with_image),
        "questions": len(answers),
        "questions_img": len(with_image),
        "unparsed": sum(parse(one.prediction) == FAILED for one in answers),
    }
