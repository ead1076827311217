"""Normalisation of short answers and the soft accuracy over ten references of VQA and TextVQA.

Source: `EvalAIAnswerProcessor` in LLaVA, `llava/eval/m4c_evaluator.py` at c121f04, and the VQA
authors' `vqaEval.py` (GT-Vision-Lab/VQA at a013f00), whose two later steps are the same.
"""

import re
from collections.abc import Sequence

from fusionbench.api.errors import UserError

REFERENCES = 10
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""In the order in which it is handled."""
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")
_MOST_PERIODS = 32
"""The official call passes a flag (`re.UNICODE`, 32) in the place of the count."""


def _misspellings(word: str) -> list[str]:
    """The word without one of its apostrophes, each in turn."""
    return [word[:i] + word[i + 1 :] for i, sign in enumerate(word) if sign == "'"]


# The official table maps back "somebody'd" to a word without an apostrophe, and has "im" and
# "ive" with a capital letter only, which a lower-cased text never meets.
CONTRACTIONS = {wrong: word for word in _CONTRACTIONS.split() for wrong in _misspellings(word)} | {
    "somebody'd": "somebodyd"
}


def one_line(text: str) -> str:
    """Line breaks and tabs as blanks, stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def punctuation(text: str) -> str:
    """Delete a sign that stands beside a blank, replace other signs by a blank, drop dots.

    The test looks at the text as it came; with a comma between digits every sign is deleted. Dots
    in front of a digit stay, and so do dots after the first 32 that were dropped.
    """
    everywhere = _DIGIT_COMMA.search(text) is not None
    found = text
    for sign in PUNCTUATION:
        beside_blank = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside_blank or everywhere else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def words(text: str) -> str:
    """Lower case, number words up to ten as digits, no articles, contractions with apostrophe."""
    numbered = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def normalise(text: str) -> str:
    """The full normalisation: lower case, no comma or question mark, " 's", then both steps."""
    plain = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return words(punctuation(one_line(plain.strip())))


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Mean over references of min(1, matches among the others / 3), in 0 to 1."""
    matches = sum(one == prediction for one in references)
    each = [min(1.0, (matches - (one == prediction)) / 3) for one in references]
    return sum(each) / len(each)


def ten(references: Sequence[str]) -> Sequence[str]:
    """The references. Raises UserError if they are not ten."""
    if len(references) != REFERENCES:
        raise UserError(
            f"{len(references)} reference answers", f"the soft accuracy needs {REFERENCES}"
        )
    return references
