"""MMBench: the chosen option, plain and by CircularEval, with two public extractors.

CircularEval (Liu et al., 2023) counts a question as right only if the answers to all rotations of
its options are right. Rows whose index is 1,000,000 or more are rotations of the row with the same
remainder; a file without such rows has no circular accuracy. Sources: VLMEvalKit,
`vlmeval/utils/matching_util.py` at e8e78f0, by the MMBench authors; lmms-eval,
`tasks/mmbench/mmbench_evals.py` and `tasks/_task_utils/mcq_extract.py` at 75571cf. The judge of
the official protocol, a remote language model, is not part of this.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics.common import Measures, answered, letters, mean, means

ROTATION = 1_000_000
NO_OPTION = "Z"
_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_WORDS = 4
_AFFIXES = (
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A row of the file and a prediction; an option that the row lacks is None."""

    index: int
    options: tuple[str | None, ...]
    answer: str
    prediction: str
    category: str = ""

    @property
    def question(self) -> int:
        """Index of the row whose rotation this is, or its own."""
        return self.index % ROTATION

    @property
    def rotated(self) -> bool:
        """Whether the options are a rotation of another row's."""
        return self.index >= ROTATION


def offered(options: Sequence[str | None]) -> dict[str, str]:
    """Letter -> text of the options that exist."""
    found = zip(letters(len(options)), options, strict=True)
    return {letter: str(text) for letter, text in found if text is not None}


def _one_text(prediction: str, options: dict[str, str]) -> str | None:
    """The single option whose text occurs in the prediction, in any case."""
    said = prediction.lower()
    found = [letter for letter, text in options.items() if text.lower() in said]
    return found[0] if len(found) == 1 else None


def vlmevalkit_option(prediction: str, options: Sequence[str | None]) -> str | None:
    """The letter in the prediction, Z for a refusal or a bare Z, None if there is none or several.

    One of the item's letters must stand alone, as its first occurrence among the last four words;
    else "(correct) answer is X" is looked for.
    """
    if _NO_ANSWER in prediction:
        return None
    if any(phrase in prediction for phrase in _REFUSALS):
        return NO_OPTION
    words = prediction.translate(_SIGNS).split()
    known = offered(options)
    found = [letter for letter in known if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _LAST_WORDS:
        return found[0]
    if not found and NO_OPTION in words:
        return NO_OPTION
    stated = _STATED.search(prediction)
    letter = stated.group(1).upper() if stated else ""
    return letter if letter in known else None


def vlmevalkit_text(prediction: str, options: Sequence[str | None]) -> str | None:
    """The single option whose text occurs, unless the prediction is over twice as long as all."""
    known = offered(options)
    if len(prediction.lower()) > 2 * sum(map(len, known.values())):
        return None
    return _one_text(prediction, known)


def vlmevalkit(prediction: str, options: Sequence[str | None]) -> str | None:
    """VLMEvalKit's letter: by option, else by text; None if nothing can be inferred."""
    return vlmevalkit_option(prediction, options) or vlmevalkit_text(prediction, options)


def lmms_eval_option(prediction: str) -> str | None:
    """The single letter A to E that is a word of the prediction, bare or with a fixed affix.

    The affixes are tried in order. Where a bare A occurs among more than three words no bare
    letter is accepted, since A may be the article.
    """
    if _NO_ANSWER in prediction:
        return None
    words = prediction.split()
    for before, after in _AFFIXES:
        bare = not before and not after
        if bare and "A" in words and len(words) > 3:
            continue
        found = [letter for letter in "ABCDE" if f"{before}{letter}{after}" in words]
        if len(found) == 1:
            return found[0]
    return None


def lmms_eval_text(prediction: str, options: Sequence[str | None]) -> str | None:
    """The single option A to D whose text occurs in the prediction, in any case."""
    return _one_text(prediction, offered(options[:4]))


def lmms_eval(prediction: str, options: Sequence[str | None]) -> str | None:
    """lmms-eval's letter: by option, else by text; None if nothing can be inferred."""
    return lmms_eval_option(prediction) or lmms_eval_text(prediction, options)


_PHRASES = (
    "the answer is|answer is|the correct answer is|correct answer is|the best answer is"
    "|best answer is|the correct option is|correct option is|the best option is|best option is"
    "|the choice is|choice is|the correct choice is|correct choice is|i choose|i select|i pick"
    "|my answer is|my choice is|옵션|정답은|답은|답:|答案是|答案为|选|答えは"
).split("|")
# Higher values win; of equal ones the letter nearest to the end.
_FORMS: tuple[tuple[str, int], ...] = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_AT_START, _AT_END, _AFTER_PHRASE, _ANYWHERE = 10, 9, 7, 0


def lmms_eval_fallback(prediction: str, options: Sequence[str | None]) -> str | None:
    """The letter with the best evidence: at the start, at the end, after a phrase, by its form.

    Without any evidence a capital letter anywhere counts, the B of "BLUE" too.
    """
    text = prediction.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    padded = f" {text} "
    found = [one for letter in offered(options) for one in _evidence(letter, padded)]
    if not found:
        found = [(_ANYWHERE, padded.rfind(letter), letter)
                 for letter in offered(options) if letter in padded]  # fmt: skip
    best = max(found, key=lambda one: one[:2], default=None)
    return best[2] if best else None


def _evidence(letter: str, padded: str) -> list[tuple[int, int, str]]:
    """(strength, position, letter) of each form in which the letter occurs."""
    found = [(strength, padded.rfind(form.format(letter))) for form, strength in _FORMS]
    lowered, stripped = padded.lower(), padded.strip()
    for phrase in _PHRASES:
        at = lowered.find(phrase)
        found.append((_AFTER_PHRASE, padded.find(letter, at + len(phrase)) if at >= 0 else -1))
    if stripped.startswith(letter) and not stripped[1:2].isalpha():
        found.append((_AT_START, 0))
    if stripped.endswith(letter) and not stripped[-2:-1].isalpha():
        found.append((_AT_END, len(padded) - 1))
    return [(strength, at, letter) for strength, at in found if at >= 0]


def lmms_eval_static(prediction: str, options: Sequence[str | None]) -> str | None:
    """lmms-eval's letter without a judge: inferred, else the fallback's."""
    return lmms_eval(prediction, options) or lmms_eval_fallback(prediction, options)


def score(answer: Answer) -> float:
    """1 if VLMEvalKit's letter of this row is the true one, else 0; nothing inferred is wrong."""
    return float(vlmevalkit(answer.prediction, answer.options) == answer.answer)


def circular(answers: Sequence[Answer], right: Sequence[float]) -> dict[int, float]:
    """Question -> 1 if all of its rows are right, else 0."""
    found: dict[int, float] = {}
    for one, hit in zip(answers, right, strict=True):
        found[one.question] = min(hit, found.get(one.question, hit))
    return found


def representatives(answers: Sequence[Answer]) -> list[Answer]:
    """The row with the smallest index of each question, as often as it stands there."""
    first: dict[int, int] = {}
    for one in answers:
        first[one.question] = min(one.index, first.get(one.question, one.index))
    return [one for one in answers if one.index == first[one.question]]


def measures(answers: Sequence[Answer]) -> Measures:
    """Plain and circular accuracy, and lmms-eval's static reading, over all and by category.

    `accuracy` is over rows that are no rotations, `accuracy_rows` over all rows (VLMEvalKit's
    vanilla rate). `accuracy_circular` is None for a file without rotations; there
    `lmms_eval_static` is a plain accuracy as well. Raises UserError for no answers.
    """
    inferred = [vlmevalkit(one.prediction, one.options) for one in answered(answers)]
    hits = [float(said == one.answer) for said, one in zip(inferred, answers, strict=True)]
    rotations = sum(one.rotated for one in answers)
    plain = [(one, hit) for one, hit in zip(answers, hits, strict=True) if not one.rotated]
    names = [one.category for one, _ in plain]
    static = _static(answers)
    kept = [static[one.question] for one, _ in plain]
    found: Measures = {
        "accuracy": mean(hit for _, hit in plain),
        "accuracy_circular": _over_questions(answers, hits) if rotations else None,
        "accuracy_rows": mean(hits),
        "lmms_eval_static": mean(kept),
        "questions": len(plain),
        "rows": len(answers),
        "rotations": rotations,
        "not_inferred": sum(said is None for said in inferred),
    }
    by_category = means("accuracy", names, [hit for _, hit in plain])
    return found | by_category | means("lmms_eval_static", names, kept)


def _over_questions(answers: Sequence[Answer], right: Sequence[float]) -> float | None:
    """Share of questions with all rows right; rows that occur twice count twice."""
    verdicts = circular(answers, right)
    return mean(verdicts[one.question] for one in representatives(answers))


def _static(answers: Sequence[Answer]) -> dict[int, float]:
    """Question -> 1 if lmms-eval's static letters of all its rows are right."""
    said = [lmms_eval_static(one.prediction, one.options) for one in answers]
    right = [float(letter == one.answer) for letter, one in zip(said, answers, strict=True)]
    return circular(answers, right)
