"""ZeroBench: the answer in curly braces, in the readings of three public scorers.

Sources: Mema, `llava/eval/eval_zerobench.py` at fa1cc53 (five modes); the benchmark's README
(jonathan-roberts1/zerobench); lmms-eval, `tasks/zerobench/utils.py` at 75571cf.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from fusionbench.metrics.common import Measures, answered, mean

_BRACES = re.compile(r"\{(.*?)\}", re.DOTALL)
_BRACES_ON_A_LINE = re.compile(r"\{(.*?)\}")
_NUMBER = re.compile(r"-?(?:\d+\.\d+|\d+|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction and the true answer."""

    prediction: str
    answer: str


def parse(prediction: str) -> str:
    """Content of the last braces, stripped and in lower case; empty without braces."""
    found = _BRACES.findall(prediction.strip().lower())
    return found[-1].strip() if found else ""


def parse_readme(prediction: str) -> str:
    """The same on one line, with its blanks."""
    found = _BRACES_ON_A_LINE.findall(prediction.strip().lower())
    return found[-1] if found else ""


def collapsed(text: str) -> str:
    """Lower case with single blanks."""
    return " ".join(text.lower().split())


def last_line(prediction: str) -> str:
    """The last line that is not empty."""
    lines = [line for line in prediction.split("\n") if line.strip()]
    return lines[-1] if lines else ""


Reading = Callable[[str, str], bool]


def unless_empty(mode: Reading) -> Reading:
    """Mema's rule for an empty true answer: it is met by an empty text only."""

    @functools.wraps(mode)
    def accepts(prediction: str, answer: str) -> bool:
        if not collapsed(answer):
            return not collapsed(prediction)
        return mode(prediction, answer)

    return accepts


@unless_empty
def mema_official(prediction: str, answer: str) -> bool:
    """Whether the content of the last braces is the true answer."""
    return parse(prediction) == answer.strip().lower()


def mema_exact(prediction: str, answer: str) -> bool:
    """Whether the whole text is the true answer."""
    return collapsed(prediction) == collapsed(answer)


@unless_empty
def mema_contain(prediction: str, answer: str) -> bool:
    """Whether the text contains the true answer; "17" contains "7"."""
    return collapsed(answer) in collapsed(prediction)


def mema_last_line(prediction: str, answer: str) -> bool:
    """Whether the last line is the true answer."""
    return collapsed(last_line(prediction)) == collapsed(answer)


def mema_auto(prediction: str, answer: str) -> bool:
    """Whether any of the other four modes accepts the text.

    The official mode also looks behind "answer is"; what stands there is part of the text, so
    `mema_contain` has accepted it before.
    """
    modes = (mema_official, mema_exact, mema_contain, mema_last_line)
    return any(mode(prediction, answer) for mode in modes)


def benchmark_readme(prediction: str, answer: str) -> bool:
    """Whether the content of the last braces on one line, blanks included, is the true answer."""
    return parse_readme(prediction) == answer.strip().lower()


def plain(text: str) -> str:
    """Lower case without quotes around it, with single blanks and without one final dot."""
    joined = re.sub(r"\s+", " ", text.strip().lower().strip("\"'`"))
    return joined[:-1].rstrip() if joined.endswith(".") else joined


def number(text: str) -> Decimal | None:
    """The decimal number, without the commas between its digits, or None."""
    digits = text.strip().replace(",", "")
    return Decimal(digits) if _NUMBER.fullmatch(digits) else None


def lmms_eval(prediction: str, answer: str) -> bool:
    """Whether both are equal as decimal numbers, or as texts if one is no number. No braces."""
    said, true = plain(prediction.strip()), plain(answer.strip())
    numbers = number(said), number(true)
    return said == true if None in numbers else numbers[0] == numbers[1]


READINGS: dict[str, Reading] = {
    "mema_official": mema_official,
    "mema_exact": mema_exact,
    "mema_contain": mema_contain,
    "mema_last_line": mema_last_line,
    "mema_auto": mema_auto,
    "benchmark_readme": benchmark_readme,
    "lmms_eval": lmms_eval,
}


def score(answer: Answer) -> float:
    """1 if the benchmark's README accepts the answer, else 0."""
    return float(benchmark_readme(answer.prediction, answer.answer))


def measures(answers: Sequence[Answer]) -> Measures:
    """The share accepted in each reading and the number of questions: pass@1 of one answer each.

    Raises UserError for no answers.
    """
    found: Measures = {"questions": len(answered(answers))}
    for name, accepts in READINGS.items():
        found[name] = mean(float(accepts(one.prediction, one.answer)) for one in answers)
    return found
