"""MMMU: multiple choice with a random letter where none can be parsed, and open answers.

Source: the authors' `eval_utils.py` (Yue et al., CVPR 2024), as shipped in Mema,
`llava/eval/mmmu/utils/eval_utils.py` at fa1cc53.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.api.errors import UserError
from fusionbench.metrics.common import Measures, answered, letters, mean, means

MULTIPLE_CHOICE = "multiple-choice"
SEED = 42
_EDGE_SIGNS = ",.!?;:'"
_FEW_WORDS = 5
_INDICATORS = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ",
)  # fmt: skip
_TRIVIAL = frozenset(":,.!?;'")
# Numbers with groups of three digits; with an exponent; integers and decimals that are no part of
# either. In this order, so that a text can give several readings of one number.
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Parsed = list[str | float]
"""Candidate answers of an open question: texts in lower case and numbers with two decimals."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, with the true letter or text (or several that are all right)."""

    question_type: str
    """`multiple-choice`; any other value is an open question."""
    options: tuple[str, ...]
    answer: str | tuple[str, ...]
    prediction: str
    category: str = ""

    @property
    def choice(self) -> bool:
        """Whether one of the options is asked for."""
        return self.question_type == MULTIPLE_CHOICE


@dataclass(frozen=True)
class Outcome:
    """What was read from a prediction, whether the letter was drawn at random, and the verdict."""

    parsed: str | Parsed
    random_fallback: bool
    correct: bool


def parse_choice(prediction: str, options: Sequence[str]) -> str | None:
    """The letter whose last mention is latest, or None if nothing can be parsed.

    Mentions are "(X)"; without any, X between blanks; without any and with more than five words,
    texts of options. Signs at both ends are stripped first, one kind after the other.
    """
    text = prediction
    for sign in _EDGE_SIGNS:
        text = text.strip(sign)
    padded = f" {text} "
    names = letters(len(options))
    written = [{letter: form.format(letter) for letter in names} for form in ("({})", " {} ")]
    for mentions in written:
        latest = _latest(padded, mentions)
        if latest:
            return latest
    if len(padded.split()) <= _FEW_WORDS:
        return None
    lowered = {letter: text.lower() for letter, text in zip(names, options, strict=True)}
    return _latest(padded.lower(), lowered)


def _latest(text: str, mentions: dict[str, str]) -> str | None:
    """The letter whose last mention is latest, the first on ties; None if none is mentioned."""
    found = {letter: text.rfind(mention) for letter, mention in mentions.items() if mention in text}
    return max(found, key=lambda letter: found[letter]) if found else None


def normalised(text: str) -> Parsed:
    """A number with two decimals, or the text in lower case; a single character with a blank."""
    stripped = text.strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lowered = stripped.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def _conclusion(part: str, indicators: Sequence[str]) -> str:
    """The shortest text behind the last occurrence of an indicator, empty if there is none."""
    shortest = ""
    for sign in indicators:
        tail = part.split(sign)[-1].strip()
        # An empty text counts as none, so that a longer one may follow it.
        if sign in part and (not shortest or len(tail) < len(shortest)):
            shortest = tail
    return shortest


def conclusions(prediction: str) -> list[str]:
    """The concluding texts of the lines of an open answer, or all of it if no line has one.

    The authors split at a dot in front of a capital letter after lower-casing, so only line breaks
    split. An equals sign is an indicator in the last line only.
    """
    whole = prediction.strip().strip(".").lower()
    *early, last = whole.split("\n")
    found = [_conclusion(part, _INDICATORS) for part in early]
    found.append(_conclusion(last, (*_INDICATORS, "=")))
    kept = [text for text in found if text and text not in _TRIVIAL]
    return kept or [whole]


def parse_open(prediction: str) -> Parsed:
    """Texts and numbers of an open answer, without repetition: texts first, then numbers."""
    texts = conclusions(prediction)
    numbers = [number for text in texts for form in _NUMBERS for number in form.findall(text)]
    found = {value for text in [*texts, *numbers] for value in normalised(text)}
    return sorted(found, key=lambda value: (not isinstance(value, str), str(value)))


def _several(answer: str | Sequence[str]) -> list[str]:
    return [answer] if isinstance(answer, str) else list(answer)


def choice_correct(letter: str, answer: str | Sequence[str]) -> bool:
    """Whether the letter is the true one, or one of the true ones."""
    return letter in _several(answer)


def open_correct(parsed: Parsed, answer: str | Sequence[str]) -> bool:
    """Whether a number equals a true number, or a text contains a true text."""
    true = [value for text in _several(answer) for value in normalised(text)]
    texts = [value for value in true if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in true
        for value in parsed
    )


def outcomes(answers: Sequence[Answer], seed: int = SEED) -> list[Outcome]:
    """Outcome of each answer; letters that cannot be parsed are drawn in the order of the answers.

    Raises UserError for a multiple-choice question without options.
    """
    draw = random.Random(seed)
    return [_chosen(one, draw) if one.choice else _opened(one) for one in answers]


def _chosen(answer: Answer, draw: random.Random) -> Outcome:
    if not answer.options:
        raise UserError("MMMU: a multiple-choice question without options", "give its options")
    letter = parse_choice(answer.prediction, answer.options)
    used = letter or draw.choice(letters(len(answer.options)))
    return Outcome(used, letter is None, choice_correct(used, answer.answer))


def _opened(answer: Answer) -> Outcome:
    parsed = parse_open(answer.prediction)
    return Outcome(parsed, False, open_correct(parsed, answer.answer))


def scores(answers: Sequence[Answer]) -> list[float]:
    """1 or 0 of each answer, in order. Raises UserError as `outcomes` does."""
    return [float(one.correct) for one in outcomes(answers)]


def accuracy(correct: Sequence[bool]) -> float:
    """Share of right answers; 0 of an empty category, as the authors' `evaluate` has it."""
    return sum(correct) / len(correct) if correct else 0.0


def measures(answers: Sequence[Answer]) -> Measures:
    """Accuracy over all and by category, and how many letters were drawn at random.

    `accuracy_parsed` counts drawn letters as wrong. Raises UserError for no answers.
    """
    judged = outcomes(answered(answers))
    right = [float(one.correct) for one in judged]
    found: Measures = {
        "accuracy": accuracy([one.correct for one in judged]),
        "accuracy_parsed": mean(float(one.correct and not one.random_fallback) for one in judged),
        "random_fallbacks": sum(one.random_fallback for one in judged),
        "questions": len(answers),
        "open_questions": sum(not one.choice for one in answers),
    }
    return found | means("accuracy", [one.category for one in answers], right)
