"""Claims of papers, answered from records: holds, fails or undecided.

A claim is a sentence with one inequality on a difference, method minus reference. The K claims that
are read together form one correction group, run or not: every interval has level 1 - 0.05 / K, so
with 95 % probability all of them contain the truth and no answer is wrong, and no answer changes
when other methods arrive. A claim holds if its interval lies inside the range it allows, fails if
it lies outside, and is undecided otherwise.

All numbers are points: percent of the examples for a single task, hundredths of the way from
chance to perfect for several tasks.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.pairs import (
    Measured,
    NotComparable,
    Results,
    corrected_weights,
    minus,
    task_weights,
)
from fusionbench.records.scores import ScoreTable
from fusionbench.records.yaml_files import YamlMapping, parse_section, read_section
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.selection import select_methods, split_inline, split_names
from fusionbench.report.tables import Row, csv_row, effect_text, markdown
from fusionbench.stats import verdicts
from fusionbench.stats.estimate import FEWEST_REPLICATES
from fusionbench.stats.verdicts import Correction, Question, Verdict
from fusionbench.study.study import QUICK

SUITE = "suite"
PUBLISHED = "published"
"""Name of the claims that ship with the package."""


class Relation(StrEnum):
    """The claimed relation of a method to its reference."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NOT_WORSE = "not worse"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable sentence of a paper."""

    id: str
    sentence: str
    method: str
    relation: Relation
    than: str
    tasks: tuple[str, ...]
    """Names or globs of tasks, a skill such as `fine`, or `suite`."""
    more_than_on: tuple[str, ...] = ()
    """If given, the claim is about the difference on `tasks` minus the one on these."""
    by: float = 0.0
    """`by_at_least` of better and worse, `within` of the other two; in points."""
    source: str = ""
    evidence: str = ""
    """How the sentence was read: `first-hand`, `second-hand`, ..."""
    reported: str = ""
    """The paper's own numbers, in its own regime."""
    note: str = ""

    @property
    def low(self) -> float:
        """Lower end of the differences that the claim allows, in points."""
        if self.relation is Relation.BETTER:
            return self.by
        return float("-inf") if self.relation is Relation.WORSE else -self.by

    @property
    def high(self) -> float:
        """Upper end, in points."""
        if self.relation is Relation.WORSE:
            return -self.by
        return self.by if self.relation is Relation.EQUIVALENT else float("inf")

    @property
    def claimed(self) -> tuple[float, float]:
        """The open range of allowed differences, as shares of a score."""
        return self.low / 100, self.high / 100

    @property
    def asks(self) -> str:
        """The inequality in symbols: `> 0`, `>= 0.5`, `-1 to 1`."""
        if self.relation is Relation.EQUIVALENT:
            return f"{-self.by:g} to {self.by:g}"
        if self.relation is Relation.BETTER:
            return f">= {self.by:g}" if self.by else "> 0"
        if self.relation is Relation.WORSE:
            return f"<= {-self.by:g}" if self.by else "< 0"
        return f"> {-self.by:g}"

    @property
    def tested(self) -> str:
        """The difference, the tasks and the inequality in words and symbols."""
        more = f", less the same on {', '.join(self.more_than_on)}" if self.more_than_on else ""
        return f"`{self.method}` minus `{self.than}` on {', '.join(self.tasks)}{more} {self.asks}"


_NEEDED = ("id", "sentence", "method", "relation", "than", "tasks")
_WORDS = ("id", "sentence", "method", "than")
_TEXTS = ("source", "evidence", "reported", "note")
_BY = {
    Relation.BETTER: "by_at_least",
    Relation.WORSE: "by_at_least",
    Relation.EQUIVALENT: "within",
    Relation.NOT_WORSE: "within",
}
KEYS = (*_NEEDED, "more_than_on", "by_at_least", "within", *_TEXTS)
_START = "the file starts with `claims:` and a list"
_EXAMPLE = "a claim has id, sentence, method, relation, than and tasks; see docs/reporting.md"


def load_claims(source: str | Path) -> tuple[Claim, ...]:
    """Read a file of claims, or the shipped ones by the name `published`.

    Raises UserError for a file that cannot be read or holds anything but claims.
    """
    if str(source) == PUBLISHED:
        return parse_claims(_shipped(), PUBLISHED)
    hint = f"give a YAML file, or `{PUBLISHED}` for the claims that ship with FusionBench"
    return _claims(read_section(source, "claims", hint=hint), source)


def parse_claims(text: str, source: object) -> tuple[Claim, ...]:
    """Claims from the text of a file. Raises UserError."""
    return _claims(parse_section(text, str(source), "claims", hint=_START), source)


def _claims(section: YamlMapping, source: object) -> tuple[Claim, ...]:
    section.check_keys(("claims", "note"))
    entries = section.get("claims")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{source} holds no claims", _START)
    claims = tuple(_claim(entry, f"{source}: claim {n}") for n, entry in enumerate(entries, 1))
    twice = [name for name, times in Counter(claim.id for claim in claims).items() if times > 1]
    if twice:
        raise UserError(f"{source}: the id {twice[0]!r} comes twice", "give every claim its own")
    return claims


def _shipped() -> str:
    return (files("fusionbench.report") / "claims.yaml").read_text(encoding="utf-8")


def _claim(entry: object, where: str) -> Claim:
    if not isinstance(entry, YamlMapping):
        raise UserError(f"{where} must hold keys, got {entry!r}", _EXAMPLE)
    if "id" in entry:
        where = f"{where} ({entry['id']})"
    entry.check_keys(KEYS, needed=_NEEDED)
    relation = _relation(entry["relation"], where)
    texts = {key: _text(entry[key], key, where) for key in (*_WORDS, *_TEXTS) if key in entry}
    found = Claim(
        id=texts["id"],
        sentence=texts["sentence"],
        method=texts["method"],
        relation=relation,
        than=texts["than"],
        tasks=_names(entry, "tasks", where),
        more_than_on=_names(entry, "more_than_on", where) if "more_than_on" in entry else (),
        by=_points(entry, relation, where),
        source=texts.get("source", ""),
        evidence=texts.get("evidence", ""),
        reported=texts.get("reported", ""),
        note=texts.get("note", ""),
    )
    if found.method == found.than:
        raise UserError(f"{where}: {found.method} is compared with itself", "name another method")
    if set(found.tasks) == set(found.more_than_on):
        said = f"{where}: tasks and more_than_on are the same: {', '.join(found.tasks)}"
        raise UserError(said, "the difference is 0: name other tasks")
    return found


def _relation(value: object, where: str) -> Relation:
    names = [str(relation) for relation in Relation]
    if value not in names:
        error = unknown("relation", str(value), names)
        raise UserError(f"{where}: {error.message}", error.hint)
    return Relation(str(value))


def _points(entry: Mapping[str, Any], relation: Relation, where: str) -> float:
    """The number of the claim: 0 for better and worse, the default margin for the others."""
    key = _BY[relation]
    for other in {"by_at_least", "within"} - {key}:
        if other in entry:
            raise UserError(f"{where}: {other} does not go with {relation!s}", f"use {key}")
    margin = QUICK.margins["suite"] if key == "within" else 0.0
    value = entry.get(key, margin)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {key} must be a number of points, got {value!r}", f"{key}: 0.5")
    if value < 0 or (value == 0 and key == "within"):
        raise UserError(f"{where}: {key} must be positive, got {value}", f"for example {key}: 0.5")
    return float(value)


def _names(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry[key]
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise UserError(f"{where}: {key} must name tasks, got {value!r}", "for example tasks: fine")
    return tuple(name for item in items for name in split_names(item))


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} must be text, got {value!r}", f"for example {key}: ...")
    return " ".join(value.split())


_GLOB = set("*?")


def checked(claim: Claim, catalog: Catalog, tables: Sequence[ScoreTable]) -> Claim:
    """The claim with its methods as the tables spell them.

    Raises UserError for a name that neither this installation nor the tables know.
    """
    methods = {name for table in tables for name in table.methods}
    tasks = {task.name for table in tables for task in table.tasks} | set(catalog.tasks)
    cards = catalog.tasks.values()
    groups = {SUITE} | {card.group for card in cards if card.in_suite}
    groups |= {task.group for table in tables for task in table.tasks if task.counts}
    for name in (*claim.tasks, *claim.more_than_on):
        _check_task(name, tasks, groups - {""}, claim.id)
    return replace(
        claim,
        method=_label(claim.method, catalog, methods, claim.id),
        than=_label(claim.than, catalog, methods, claim.id),
    )


def row_named(table: ScoreTable, method: str) -> int:
    """The method's row. Raises NotComparable if it has none, or several versions."""
    if method in table.methods:
        return table.methods.index(method)
    versions = [name for name in table.methods if name.startswith(f"{method} (")]
    if versions:
        raise NotComparable(
            f"these results hold {' and '.join(versions)}: a claim names one of them"
        )
    raise NotComparable(f"{method} was not run")


def columns(table: ScoreTable, names: Sequence[str]) -> list[int]:
    """Columns selected by names, globs, skills and `suite`, in the order of the table."""
    return [
        column
        for column, task in enumerate(table.tasks)
        if any(
            task.name == name
            or (task.counts and name in (SUITE, task.group))
            or (_GLOB & set(name) and fnmatchcase(task.name, name))
            for name in names
        )
    ]


def _label(text: str, catalog: Catalog, labels: Collection[str], claim: str) -> str:
    if text in labels:
        return text
    name, inline = split_inline(text)
    if name not in catalog.methods:
        error = unknown(
            "method", name, {*catalog.methods, *labels}, "`fusionbench list methods` shows all"
        )
        raise UserError(f"claim {claim}: {error.message}", error.hint)
    return select_methods(catalog, [text])[0].label if inline else name


def _check_task(name: str, tasks: Collection[str], groups: Collection[str], claim: str) -> None:
    if name in groups or name in tasks:
        return
    if _GLOB & set(name) and any(fnmatchcase(task, name) for task in tasks):
        return
    hint = f"known: {', '.join(sorted(groups))}; `fusionbench list tasks` shows all tasks"
    error = unknown("task or skill", name, {*tasks, *groups}, hint)
    raise UserError(f"claim {claim}: {error.message}", error.hint)


@dataclass(frozen=True, kw_only=True)
class ClaimAnswer:
    """A claim in one condition: its measured difference, verdict and interval, in points."""

    claim: Claim
    condition: str
    """The table's title; empty where no table has the claim's tasks."""
    measured: Measured
    judged: verdicts.Decision = verdicts.Decision()

    @property
    def verdict(self) -> Verdict:
        """Holds, fails, or undecided."""
        return Verdict(self.judged.verdict or Verdict.UNDECIDED)

    @property
    def reason(self) -> str:
        """The ground of the verdict."""
        if self.measured.gap:
            return self.measured.gap
        if self.judged.p is None:
            seeds = len(self.measured.seeds)
            return f"{seeds} seeds: a test needs at least {FEWEST_REPLICATES}"
        return _REASONS[self.verdict].format(mde=effect_text(self.judged.mde))

    @property
    def value(self) -> float:
        """The estimated difference; NaN without one."""
        estimate = self.measured.estimate
        return math.nan if estimate is None else 100 * float(estimate.value)

    @property
    def low(self) -> float:
        """Lower end of the simultaneous interval."""
        return _in_points(self.judged.low)

    @property
    def high(self) -> float:
        """Upper end."""
        return _in_points(self.judged.high)

    @property
    def mde(self) -> float:
        """Distance of the truth beyond the claim's limit that is found with 80 % power."""
        return _in_points(self.judged.mde)


_REASONS = {
    Verdict.HOLDS: "the interval is inside the claimed range",
    Verdict.FAILS: "the interval is outside the claimed range",
    Verdict.UNDECIDED: "the interval crosses a limit of the range; the MDE is {mde} points",
}


def _in_points(share: float | None) -> float:
    return math.nan if share is None else 100 * share


def answers(claims: Sequence[Claim], results: Results, catalog: Catalog) -> list[ClaimAnswer]:
    """Every claim in every condition that has its tasks, in the order of the claims.

    Raises UserError for an unknown name.
    """
    known = [checked(claim, catalog, results.tables) for claim in claims]
    found = [answer for claim in known for answer in _measured(claim, results)]
    questions = [_question(answer) for answer in found]
    # The interval of an untestable claim is a plain 95 % one.
    judged = [
        verdicts.judge([one], Correction.BONFERRONI, tests=len(found) if one.testable else 1)[0]
        for one in questions
    ]
    return [replace(one, judged=answer) for one, answer in zip(found, judged, strict=True)]


def _question(answer: ClaimAnswer) -> Question:
    estimate = answer.measured.estimate
    return Question(references=(estimate,) if estimate else (), claimed=answer.claim.claimed)


def _measured(claim: Claim, results: Results) -> Iterator[ClaimAnswer]:
    tables = [table for table in results.tables if columns(table, claim.tasks)]
    if not tables:
        gap = Measured(gap=f"none of its tasks was run: {', '.join(claim.tasks)}")
        yield ClaimAnswer(claim=claim, condition="", measured=gap)
    for table in tables:
        try:
            measured = _difference(claim, results, table)
        except NotComparable as gap:
            measured = Measured(gap=str(gap))
        yield ClaimAnswer(claim=claim, condition=table.condition.title, measured=measured)


def _difference(claim: Claim, results: Results, table: ScoreTable) -> Measured:
    rows = row_named(table, claim.method), row_named(table, claim.than)
    for row in rows:
        if row in table.leaky:
            raise NotComparable(f"{table.methods[row]} reads the answers in training")
    tasks, beyond = columns(table, claim.tasks), columns(table, claim.more_than_on)
    if claim.more_than_on and not beyond:
        raise NotComparable(f"none of these tasks was run: {', '.join(claim.more_than_on)}")
    weights = task_weights(table, tasks)
    if beyond:
        # A single task's own points and those from chance to perfect are not to be subtracted.
        sides = corrected_weights(table, tasks), -corrected_weights(table, beyond)
        weights = np.concatenate(sides)
    return results.contrast(table, minus(*rows), (*tasks, *beyond), weights)


_READING = """\
Differences are method minus reference in points; over several tasks, and on both sides of
`more_than_on`, every task counts the same between chance (0) and perfect (100). Intervals are
simultaneous over all claims here, run or not: with 95 % probability all of them contain the truth,
for new runs and new images of these tasks and this budget. With fewer than 4 seeds nothing is
tested and the interval is a plain 95 % one. The papers used another regime: an answer is about the
claim as stated, under this protocol."""


def page(answers: Sequence[ClaimAnswer], folder: str) -> str:
    """A table of answers for each condition, then every claim with its source and reason."""
    counts = Counter(answer.verdict for answer in answers)
    verdicts_in_order = (Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts_in_order)
    parts = [f"# Claims against {folder}", "", f"{summary}.", "", _READING, ""]
    for condition in dict.fromkeys(answer.condition for answer in answers):
        here = [answer for answer in answers if answer.condition == condition]
        parts += [f"## {condition or 'not run'}", "", markdown([_row(one) for one in here])]
        parts += [*_details(here), ""]
    return "\n".join(parts).rstrip() + "\n"


def long_rows(answers: Sequence[ClaimAnswer]) -> list[Row]:
    """One row for each claim and condition, all digits."""
    return [_long_row(answer) for answer in answers]


def _row(answer: ClaimAnswer) -> Row:
    claim, measured = answer.claim, answer.measured
    known = measured.estimate is not None
    interval = f"{answer.value:+.1f} [{answer.low:+.1f}, {answer.high:+.1f}]"
    return {
        "claim": claim.id,
        "answer": f"**{answer.verdict}**",
        "asks": claim.asks,
        "difference": interval if known else "-",
        "MDE": effect_text(answer.judged.mde) if known else "-",
        "seeds": str(len(measured.seeds)) if known else "-",
        "tasks": str(len(measured.tasks)) if known else "-",
    }


def _details(answers: Sequence[ClaimAnswer]) -> Iterator[str]:
    for answer in answers:
        claim = answer.claim
        origin = f" ({claim.source}, {claim.evidence})" if claim.source else ""
        yield f'- `{claim.id}` "{claim.sentence}"{origin}'
        yield f"  - tested as: {claim.tested}"
        yield f"  - {answer.verdict}: {answer.reason}"
        if answer.measured.identical:
            yield "  - the two scored alike on every example"
        if answer.measured.estimate and answer.measured.unpaired:
            left = ", ".join(map(str, answer.measured.unpaired))
            yield f"  - left out, since some cell lacks them: seeds {left}"
        if claim.reported:
            yield f"  - reported in another regime: {claim.reported}"
        if claim.note:
            yield f"  - note: {claim.note}"


def _long_row(answer: ClaimAnswer) -> Row:
    claim, measured = answer.claim, answer.measured
    known = measured.estimate is not None
    return csv_row(
        {
            "claim": claim.id,
            "verdict": str(answer.verdict),
            "condition": answer.condition,
            "method": claim.method,
            "reference": claim.than,
            "relation": str(claim.relation),
            "by": f"{claim.by:g}",
            "tasks": " ".join(measured.tasks if known else claim.tasks),
            "n_seeds": len(measured.seeds) if known else None,
            "difference": answer.value if known else None,
            "low": answer.low if known else None,
            "high": answer.high if known else None,
            "mde": answer.mde if known else None,
            "reason": answer.reason,
            "sentence": claim.sentence,
            "source": claim.source,
            "evidence": claim.evidence,
        }
    )
