"""`fusionbench list`: what exists here, as columns for people or as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from fusionbench.catalog import Catalog, MethodCard, TaskCard
from fusionbench.settings import shown

Row = tuple[str, ...]


def methods_text(catalog: Catalog) -> str:
    """One line per method: name, version, where it runs, settings, source."""
    header = ("method", "version", "runs", "settings (a variant's change first)", "from")
    return columns([header, *(_method(card) for card in catalog.methods.values())])


def tasks_text(catalog: Catalog) -> str:
    """One line per task: name, version, skill, and how to get what is missing."""
    header = ("task", "version", "group", "in suite", "available", "from")
    return columns([header, *(_task(card) for card in catalog.tasks.values())])


def encoders_text() -> str:
    """One line per encoder: its shape, and how to fetch it."""
    from fusionbench.encoders.catalog import available

    header = ("encoder", "blocks x width", "input", "available")
    rows: list[Row] = [header]
    for card in available():
        stack = f"{card.layers} x {card.dim}" if card.layers else "-"
        size = f"{card.size} px" if card.size else "-"
        rows.append((card.name, stack, size, "yes" if card.available else f"no: {card.get}"))
    rows.append(("hf:<id or folder>", "-", "-", "CLIP, SigLIP, DINOv2, ViT of transformers"))
    rows.append(("timm:<name or folder>", "-", "-", "ViTs of timm"))
    return columns(rows)


def as_json(kind: str, catalog: Catalog) -> str:
    """The cards of a kind as a JSON list."""
    if kind == "encoders":
        from fusionbench.encoders.catalog import available

        return json.dumps([asdict(card) for card in available()], indent=1)
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
