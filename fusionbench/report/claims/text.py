"""Answers for people (Markdown) and for programs (CSV)."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from fusionbench.report.claims.answers import Answer, Verdict
from fusionbench.report.tables import Row, markdown

_READING = """\
Differences are method minus reference in points; over several tasks every task counts the same
between chance (0) and perfect (100). Intervals are simultaneous over the claims that can be tested:
with 95 % probability all of them hold the truth, for new runs and new images of these tasks and
this budget. With fewer than 4 seeds nothing is tested and the interval is a plain 95 % one. The
papers worked in another regime: an answer is about the claim as stated, under this protocol."""


def page(answers: Sequence[Answer], folder: str) -> str:
    """What was answered, then each claim's sentence with its source and the reason."""
    counts = Counter(answer.verdict for answer in answers)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    parts = [f"# Claims against {folder}", "", f"{told}.", "", _READING, ""]
    for condition in dict.fromkeys(answer.condition for answer in answers):
        here = [answer for answer in answers if answer.condition == condition]
        parts += [f"## {condition or 'not run'}", "", markdown([_row(one) for one in here])]
        parts += [*_details(here), ""]
    return "\n".join(parts).rstrip() + "\n"


def long_rows(answers: Sequence[Answer]) -> list[Row]:
    """One row for each claim and condition, all digits."""
    return [_long_row(answer) for answer in answers]


def _row(answer: Answer) -> Row:
    claim, found = answer.claim, answer.found
    return {
        "claim": claim.id,
        "answer": f"**{answer.verdict}**",
        "asks": claim.asks,
        "difference": _interval(answer),
        "MDE": _number(answer.mde, 1),
        "seeds": str(len(found.seeds)) if found else "-",
        "tasks": str(len(found.tasks)) if found else "-",
    }


def _interval(answer: Answer) -> str:
    if answer.found is None:
        return "-"
    return f"{answer.value:+.1f} [{answer.low:+.1f}, {answer.high:+.1f}]"


def _details(answers: Sequence[Answer]) -> Iterator[str]:
    for answer in answers:
        claim = answer.claim
        origin = f" ({claim.source}, {claim.evidence})" if claim.source else ""
        yield f'- `{claim.id}` "{claim.sentence}"{origin}'
        yield f"  - tested as: {_tested(answer)}"
        yield f"  - {answer.verdict}: {answer.reason}"
        if answer.found and answer.found.identical:
            yield "  - the two scored alike on every example: they are the same function here"
        if answer.found and answer.found.unpaired:
            left = ", ".join(map(str, answer.found.unpaired))
            yield f"  - left out, since not every cell has them: seeds {left}"
        yield from (f"  - {text}" for text in _asides(answer))


def _asides(answer: Answer) -> Iterator[str]:
    if answer.claim.reported:
        yield f"reported in another regime: {answer.claim.reported}"
    if answer.claim.note:
        yield f"note: {answer.claim.note}"


def _tested(answer: Answer) -> str:
    claim = answer.claim
    tasks = ", ".join(claim.tasks)
    more = f", less the same on {', '.join(claim.more_than_on)}" if claim.more_than_on else ""
    return f"`{claim.method}` minus `{claim.than}` on {tasks}{more} {claim.asks}"


def _long_row(answer: Answer) -> Row:
    claim, found = answer.claim, answer.found
    return {
        "claim": claim.id,
        "verdict": str(answer.verdict),
        "condition": answer.condition,
        "method": claim.method,
        "reference": claim.than,
        "relation": str(claim.relation),
        "by": f"{claim.by:g}",
        "tasks": " ".join(found.tasks) if found else " ".join(claim.tasks),
        "n_seeds": str(len(found.seeds)) if found else "",
        "difference": _number(answer.value, 6),
        "low": _number(answer.low, 6),
        "high": _number(answer.high, 6),
        "mde": _number(answer.mde, 6),
        "reason": answer.reason,
        "sentence": claim.sentence,
        "source": claim.source,
        "evidence": claim.evidence,
    }


def _number(value: float, digits: int) -> str:
    return ("" if digits > 2 else "-") if math.isnan(value) else f"{value:.{digits}f}"
