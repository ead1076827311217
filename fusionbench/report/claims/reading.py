"""Claims from YAML: unknown keys, missing keys and wrong values are refused in one line."""

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.yaml_files import Section, parse_section, read_section
from fusionbench.registry.selection import split_names
from fusionbench.report.claims.claim import Claim, Relation
from fusionbench.study.study import QUICK

PUBLISHED = "published"
"""The name of the file that ships with the package."""

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


def _claims(section: Section, source: object) -> tuple[Claim, ...]:
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
    return (files("fusionbench.report.claims") / f"{PUBLISHED}.yaml").read_text(encoding="utf-8")


def _claim(entry: object, where: str) -> Claim:
    if not isinstance(entry, Section):
        raise UserError(f"{where} must hold keys, got {entry!r}", _EXAMPLE)
    if "id" in entry:
        where = f"{where} ({entry['id']})"
    entry.check_keys(KEYS, needed=_NEEDED)
    relation = _relation(entry["relation"], where)
    texts = {key: _text(entry[key], key, where) for key in (*_WORDS, *_TEXTS) if key in entry}
    return Claim(
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
