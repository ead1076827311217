"""The training rows of a vlm study: which tasks and files, in which shares, and their hash.

A part is a task's name (its train split), a conversation file or a set of the hub, with settings in
brackets as methods have them: `digits`, `digits[share=2]`, `mix.json[images=coco]`,
`hub:owner/name[config=subset]`. An epoch of the mixture has `share` times the rows of each part.
Val and test images of a task never enter. No torch.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fusionbench.api.errors import UserError, did_you_mean, unknown
from fusionbench.records.cell import Budget, canonical
from fusionbench.records.files import cache_dir, read_note, write_note
from fusionbench.records.parallel import in_order
from fusionbench.registry.catalog import Catalog, TaskCard
from fusionbench.registry.selection import split_inline
from fusionbench.study.conversations import PREFIX, ConversationFile, Conversations, HubSet
from fusionbench.study.data import planned_data, task_hashes, train_pixels
from fusionbench.study.study import LOCAL_TASKS

_SUFFIXES = (".json", ".jsonl")
_SETTINGS = ("share", "images", "config")
_EXAMPLE = "a task, FILE.json, FILE.jsonl or hub:<id>; for example digits[share=2]"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a mixture, as the study names it."""

    name: str
    """A task, a path, or `hub:` and an id."""
    share: float = 1.0
    """How often each row occurs in an epoch of the mixture; 0.5 is half of the rows."""
    images: str = ""
    """Of a conversation file: the folder of its images; empty: the folder of the file."""
    config: str = ""
    """Of a set of the hub: the name of its configuration."""

    @property
    def label(self) -> str:
        """Its name in cards and errors: that of a file without its folder."""
        return Path(self.name).name if self.is_file else self.name

    @property
    def is_file(self) -> bool:
        """Whether it is a conversation file."""
        return Path(self.name).suffix in _SUFFIXES and not self.is_hub

    @property
    def is_hub(self) -> bool:
        """Whether it is a set of the hub."""
        return self.name.startswith(PREFIX)

    @property
    def is_task(self) -> bool:
        """Whether it is the train split of a task."""
        return not (self.is_file or self.is_hub)


@dataclass(frozen=True, kw_only=True)
class PartCard:
    """A part and its rows: what decides a training."""

    name: str
    """A task, the name of a file without its folder, or `hub:` and an id."""
    kind: str
    """`task`, `file` or `hub`."""
    version: int
    """Of the task; 0 for conversations."""
    share: float
    rows: int
    """Training rows: examples of a task, turns of conversations."""
    hash: str
    """Of the rows; equal on every machine."""


@dataclass(frozen=True, kw_only=True)
class MixtureCard:
    """The parts of a mixture in the order of their names."""

    parts: tuple[PartCard, ...]

    @property
    def rows(self) -> int:
        """Number of different training rows."""
        return sum(part.rows for part in self.parts)

    @property
    def hash(self) -> str:
        """Of rows and shares, whatever the parts are called and in which order they are named."""
        values = sorted([part.hash, part.share] for part in self.parts)
        return hashlib.sha256(canonical(values).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A mixture's card and the parts that it was named by."""

    card: MixtureCard
    parts: tuple[Part, ...]


def parse_mixture(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of a mixture; without a name the local tasks.

    Raises UserError for a setting that does not exist, a share that is not above 0, a name twice.
    """
    parts = tuple(_part(text) for text in names or LOCAL_TASKS)
    seen: set[str] = set()
    for part in parts:
        if part.label in seen:
            raise UserError(
                f"mixture: {part.label} is named twice", f"write {part.label}[share=2] instead"
            )
        seen.add(part.label)
    return parts


def _part(text: str) -> Part:
    name, given = split_inline(text)
    for key in given:
        if key not in _SETTINGS:
            near = did_you_mean(key, _SETTINGS)
            raise UserError(
                f"mixture: {name} has no setting {key!r}{near}", f"known: {', '.join(_SETTINGS)}"
            )
    part = Part(
        name=name,
        share=_share(name, given.get("share", "1")),
        images=given.get("images", ""),
        config=given.get("config", ""),
    )
    if part.images and not part.is_file or part.config and not part.is_hub:
        raise UserError(
            f"mixture: {text}: a folder of images belongs to a file, a config to a set of the hub",
            _EXAMPLE,
        )
    return part


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise UserError(f"mixture: the share of {name} must be above 0, got {text}", _EXAMPLE)
    return share


def describe_mixture(
    parts: Sequence[Part], catalog: Catalog, budget: Budget, data_root: Path | None = None
) -> MixtureCard:
    """The card of a mixture. Files without a folder in front are looked for below `data_root`.

    `budget.train_items` cuts the train split of each task. Raises UserError for an unknown task or
    one whose data is missing, a missing file, a wrong conversation, and the same rows twice.
    """
    tasks = [_task(part, catalog) for part in parts if part.is_task]
    hashes = dict(zip((one.name for one in tasks), _train_rows(tasks, budget), strict=True))
    cards = [
        _task_part(part, catalog.tasks[part.name], hashes[part.name])
        if part.is_task
        else _conversation_part(part, data_root)
        for part in parts
    ]
    found: dict[str, str] = {}
    for card in cards:
        if (twin := found.setdefault(card.hash, card.name)) != card.name:
            raise UserError(f"mixture: {card.name} has the same rows as {twin}", "name one of them")
    return MixtureCard(parts=tuple(sorted(cards, key=lambda card: card.name)))


def open_conversations(part: Part, data_root: Path | None = None) -> Conversations:
    """The conversations of a file or a set of the hub. Raises UserError if it is not there."""
    if part.is_hub:
        return HubSet(part.name.removeprefix(PREFIX), part.config)
    root = data_root or Path()
    images = root / part.images if part.images else None
    return ConversationFile(root / part.name, images)


def _task(part: Part, catalog: Catalog) -> TaskCard:
    card = catalog.tasks.get(part.name)
    if card is None:
        raise unknown("task or conversation file", part.name, catalog.tasks, _EXAMPLE)
    if card.encoder:
        raise UserError(
            f"mixture: {part.name} is a test of the harness with an encoder of its own", _EXAMPLE
        )
    if not card.available:
        raise UserError(
            f"mixture: {part.name} needs {', '.join(card.missing)}",
            f"get it with: {card.get}" if card.get else "name the mixture without it",
        )
    return card


def _task_part(part: Part, card: TaskCard, found: tuple[int, str]) -> PartCard:
    rows, digest = found
    return PartCard(
        name=part.name, kind="task", version=card.version, share=part.share, rows=rows, hash=digest
    )


def _conversation_part(part: Part, data_root: Path | None) -> PartCard:
    index = open_conversations(part, data_root).index
    return PartCard(
        name=part.label,
        kind="hub" if part.is_hub else "file",
        version=0,
        share=part.share,
        rows=int(index.turns.sum()),
        hash=index.hash,
    )


def _train_rows(tasks: Sequence[TaskCard], budget: Budget) -> Sequence[tuple[int, str]]:
    """Number and hash of each task's training rows, remembered for the hash of its data."""
    hashes = task_hashes(tasks)
    jobs = [partial(_rows_of, card, hashes[card.name], budget.train_items) for card in tasks]
    return list(in_order(jobs))


def _rows_of(card: TaskCard, data: str, limit: int) -> tuple[int, str]:
    key = hashlib.sha256(canonical(["mixture", card.name, data, limit]).encode()).hexdigest()
    note = cache_dir("data", key[:24])
    with suppress(ValueError):
        rows, digest = read_note(note).split()
        return int(rows), digest
    found = _hashed(card, data, limit)
    write_note(note, " ".join(map(str, found)))
    return found


def _hashed(card: TaskCard, planned: str, limit: int) -> tuple[int, str]:
    """Number of training rows and SHA-256 of their items, questions, answers and images."""
    data = planned_data(card, planned)
    train, pixels = data.train, train_pixels(card.name, data)
    kept = min(limit or len(train), len(train))
    digest = hashlib.sha256()
    for row in range(kept):
        answer = data.answers[int(train.answers[row])]
        line = [train.items[row], train.questions[row], answer, pixels[row]]
        digest.update(json.dumps(line).encode() + b"\n")
    return kept, digest.hexdigest()
