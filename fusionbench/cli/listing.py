"""`fusionbench list`: what exists here, as columns for people or as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from fusionbench.registry.cards import count
from fusionbench.registry.catalog import Catalog, MethodCard, TaskCard
from fusionbench.registry.selection import shown

if TYPE_CHECKING:
    from fusionbench.encoders.card import EncoderCard

Row = tuple[str, ...]
UNTOLD = "—"
"""In place of a fact that the method's author has not given."""


def methods_text(catalog: Catalog) -> str:
    """One line per method: name, version, where it runs, settings, source."""
    header = ("method", "version", "runs", "settings (a variant's change first)", "from")
    return columns([header, *(_method(card) for card in catalog.methods.values())])


def methods_long(catalog: Catalog) -> str:
    """A paragraph per method: paper, parity, parameters, needs, and how it starts."""
    sizes = "at CLIP-L/14-336 with an LLM 4096 wide, beside LLaVA's projector"
    names = "D width, L blocks, N patches, Q the question's width, H and M the LLM's width and MLP"
    head = f"parameters: {sizes}\n{names}"
    return "\n\n".join([head, *(_paragraph(card) for card in catalog.methods.values())])


def tasks_text(catalog: Catalog) -> str:
    """One line per task: name, version, skill, and how to get what is missing."""
    header = ("task", "version", "group", "in suite", "available", "from")
    return columns([header, *(_task(card) for card in catalog.tasks.values())])


def encoders_text(catalog: Catalog) -> str:
    """One line per encoder: its shape, and how to fetch it."""
    header = ("encoder", "blocks x width", "input", "available", "from")
    rows: list[Row] = [header]
    for card in _encoders(catalog):
        stack = f"{card.layers} x {card.dim}" if card.layers else "-"
        size = f"{card.size} px" if card.size else "-"
        here = "yes" if card.available else f"no: {card.get}"
        rows.append((card.name, stack, size, here, card.origin))
    rows.append(("hf:<id or folder>", "-", "-", "CLIP, SigLIP, DINOv2, ViT of transformers", ""))
    rows.append(("timm:<name or folder>", "-", "-", "ViTs of timm", ""))
    return columns(rows)


def _encoders(catalog: Catalog) -> "list[EncoderCard]":
    from fusionbench.encoders.catalog import available
    from fusionbench.registry.encoder_cards import plugged

    return [*available(), *plugged(catalog)]


def as_json(kind: str, catalog: Catalog) -> str:
    """The cards of a kind as a JSON list."""
    if kind == "encoders":
        return json.dumps([asdict(card) for card in _encoders(catalog)], indent=1)
    cards: Mapping[str, MethodCard | TaskCard]
    cards = catalog.methods if kind == "methods" else catalog.tasks
    return json.dumps([_plain(card) for card in cards.values()], indent=1)


def columns(rows: Sequence[Row]) -> str:
    """Rows as aligned text, two spaces between columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def _method(card: MethodCard) -> Row:
    changed = [f"{key}={shown(value)}" for key, value in card.changes.items()]
    others = [f"{k}={shown(v)}" for k, v in card.settings.items() if k not in card.changes]
    runs = "in the encoder" if card.in_encoder else "on features"
    name = card.name if card.in_all else f"{card.name} (not in all)"
    return (name, str(card.version), runs, " ".join(changed + others) or "-", card.source)


def _paragraph(card: MethodCard) -> str:
    facts = told(card)
    origin = f"  from {card.source}" if card.source != "built-in" else ""
    return "\n".join([f"{card.name}{origin}", *(f"  {key:<11} {facts[key]}" for key in facts)])


def told(card: MethodCard) -> dict[str, str]:
    """What is known of a method, in words; a dash for what its author has not said."""
    facts = card.facts
    paper = ", ".join(str(facts[key]) for key in ("paper", "year") if facts.get(key))
    wants = str(facts["needs"]) or "hidden states only"
    identity = "as the penultimate layer" if facts["identity"] else "elsewhere"
    return {
        "paper": paper or UNTOLD,
        "parity": str(facts.get("parity") or UNTOLD),
        "parameters": _parameters(card),
        "needs": wants,
        "starts": identity,
    }


def _parameters(card: MethodCard) -> str:
    formula = str(card.facts.get("parameters", ""))
    if not formula:
        return UNTOLD
    try:
        number = f"{parameter_count(card):,}"
    except ValueError as error:
        return f"{UNTOLD} ({error})"
    text = number if formula == number else f"{formula} = {number}"
    published = card.facts.get("published")
    return f"{text} (the official code: {published:,})" if isinstance(published, int) else text


def parameter_count(card: MethodCard) -> int:
    """The formula's number. ValueError if the method has none that can be read."""
    width = card.facts.get("query_width", 0)
    return count(str(card.facts.get("parameters", "")), card.settings, query_width=int(width))


def _task(card: TaskCard) -> Row:
    suite = "yes" if card.in_suite else "no"
    return (card.name, str(card.version), card.group, suite, _how(card), card.source)


def _how(card: TaskCard) -> str:
    if card.available:
        return "yes"
    return f"no: {card.get}" if card.get else f"no: needs {', '.join(card.missing)}"


def _plain(card: MethodCard | TaskCard) -> Mapping[str, object]:
    return dict(_fields(card))


def _fields(card: MethodCard | TaskCard) -> Iterator[tuple[str, object]]:
    # Paths of this machine are of no use to a reader of the list.
    yield from ((key, value) for key, value in asdict(card).items() if key != "file")
    if isinstance(card, TaskCard):
        yield "available", card.available
    elif card.facts.get("parameters"):
        # A plug-in's formula may be none.
        with suppress(ValueError):
            yield "parameters_at_clip_l", parameter_count(card)
