"""Visual7W telling: the text of the option whose letter was answered.

Source: Mema, `llava/eval/model_vqa_v7w.py` and `evaluate_v7w.py` at fa1cc53.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics.common import Measures, answered, grouped, mean

FALLBACK = 0
"""The option of an answer that names none."""
_FORMS = (
    re.compile(r"\b([ABCD])\b"),
    re.compile(r"(?:ANSWER|OPTION)\s*[:\uff1a]?\s*([ABCD])"),
)
"""Tried in order; the colon may be full-width. The official form with brackets adds nothing: a
letter in brackets stands alone."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, the options in the order of their letters, and the true index."""

    prediction: str
    choices: tuple[str, ...]
    answer: int
    type: str = ""


def parse(prediction: str) -> int | None:
    """Index of the first letter A to D that stands alone, else of one after "answer" or "option".

    Case is ignored, so the article "a" is A and "I'd" is D; digits and underscores join letters.
    """
    text = prediction.strip().upper()
    for form in _FORMS:
        found = form.search(text)
        if found:
            return "ABCD".index(found.group(1))
    return None


def used_index(prediction: str) -> int:
    """The parsed index, or that of the first option: unparsable output counts as A."""
    parsed = parse(prediction)
    return FALLBACK if parsed is None else parsed


def score(answer: Answer) -> float:
    """1 if the chosen text is the true one in lower case; options of equal text are both right.

    A letter that the question does not offer is wrong.
    """
    chosen = answer.choices[used_index(answer.prediction) :][:1]
    return float(any(text.lower() == answer.choices[answer.answer].lower() for text in chosen))


def measures(answers: Sequence[Answer]) -> Measures:
    """Accuracy over all and by question type, and how many answers fell back to option A.

    Raises UserError for no answers.
    """
    scores = [score(one) for one in answered(answers)]
    found: Measures = {
        "accuracy": mean(scores),
        "questions": len(answers),
        "fallbacks": sum(parse(one.prediction) is None for one in answers),
    }
    for name, group in grouped((one.type for one in answers), scores).items():
        found |= {f"accuracy/{name}": mean(group), f"questions/{name}": len(group)}
    return found
