"""All methods and tasks there are, with names, versions and settings, read from source.

Built-ins win over plug-ins of the same name; a broken plug-in is a `Problem`, never an obstacle.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionbench.declarations import Declaration, read_source
from fusionbench.discovery import Door, Place, doors, importable
from fusionbench.errors import Problem
from fusionbench.registry import Setting

_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """What is known of a method before it is imported."""

    name: str
    family: str
    variant: str
    """The suffix after `family-`; empty for the family's own name."""
    version: int
    settings: Mapping[str, Setting]
    """Complete: the constructor's defaults with the variant's changes."""
    changes: Mapping[str, Setting]
    """What the variant changes; a setting given for the family leaves these alone."""
    in_encoder: bool
    needs_query: bool
    reads_answers: bool
    control: str
    in_all: bool
    facts: Mapping[str, str | int]
    """Paper, year, parity, ..."""
    module: str
    """Dotted name, or the path of a plug-in file."""
    cls: str
    file: str
    source: str
    """`built-in`, the plug-in's distribution and version, or its path."""


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """What is known of a task before it is imported."""

    name: str
    version: int
    family: str
    group: str
    needs: tuple[str, ...]
    get: str
    """The command that installs the data."""
    encoder: str
    """Runs on this encoder instead of the study's."""
    in_suite: bool
    missing: tuple[str, ...]
    """Packages of `needs` that are not installed here."""
    module: str
    cls: str
    file: str
    source: str

    @property
    def available(self) -> bool:
        """Whether the data is here."""
        return not self.missing


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that can be run here, sorted by name."""

    methods: Mapping[str, MethodCard]
    tasks: Mapping[str, TaskCard]
    problems: tuple[Problem, ...] = ()


@dataclass
class _Draft:
    methods: dict[str, MethodCard] = field(default_factory=dict)
    tasks: dict[str, TaskCard] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def note(self, place: Place | Door, message: str) -> None:
        source = str(place.file) if isinstance(place, Place) else place.source
        if isinstance(place, Place) and place.source not in ("built-in", str(place.file)):
            source = f"{place.source} ({place.file})"
        self.problems.append(Problem(source=source, message=message))

    def add(self, place: Place, card: MethodCard | TaskCard) -> None:
        cards: dict[str, Any] = self.methods if isinstance(card, MethodCard) else self.tasks
        kind = "method" if isinstance(card, MethodCard) else "task"
        if card.name in cards:
            other = cards[card.name]
            keeps = "built-in" if other.source == "built-in" else other.file
            self.note(place, f"{kind} {card.name!r} is already {keeps}, which is kept")
            return
        cards[card.name] = card


def read_catalog(plugins: Sequence[str] = (), *, packed: Collection[str] = ()) -> Catalog:
    """Read built-ins, `plugins` (files or folders), FUSIONBENCH_PLUGINS and entry points.

    Tasks named in `packed` need none of their packages. Raises UserError for a path in `plugins`
    that does not exist.
    """
    draft = _Draft()
    seen: set[str] = set()
    for door in doors(plugins):
        if door.problem:
            draft.note(door, door.problem)
            continue
        places = [place for place in door.places if str(place.file) not in seen]
        seen.update(str(place.file) for place in places)
        found = [_read(draft, place, packed) for place in places]
        if not any(found) and (places or not door.places):
            draft.note(door, "declares no method and no task that can be used")
    return Catalog(
        methods=dict(sorted(draft.methods.items())),
        tasks=dict(sorted(draft.tasks.items())),
        problems=tuple(draft.problems),
    )


def _read(draft: _Draft, place: Place, packed: Collection[str]) -> int:
    """Add the cards of one file; how many declarations it has, good or bad."""
    declarations, problems = read_source(place.file)
    for problem in problems:
        draft.note(place, problem)
    for declaration in declarations:
        try:
            for card in _cards(place, declaration, packed):
                draft.add(place, card)
        except (TypeError, ValueError, AttributeError) as error:
            draft.note(place, f"class {declaration.cls}: {error}")
    return len(declarations) + len(problems)


def _cards(
    place: Place, declaration: Declaration, packed: Collection[str]
) -> Iterator[MethodCard | TaskCard]:
    where = {"module": place.module, "cls": declaration.cls, "file": str(place.file)}
    where["source"] = place.source
    if declaration.kind == "task":
        yield _task(declaration, where, packed)
        return
    for variant, changes in (declaration.arguments["variants"] or {"": {}}).items():
        yield _method(declaration, where, variant, dict(changes))


def _method(
    declaration: Declaration, where: dict[str, str], variant: str, changes: dict[str, Setting]
) -> MethodCard:
    given = declaration.arguments
    family = _name(given["family"])
    for key in changes:
        if key not in declaration.settings:
            known = ", ".join(declaration.settings) or "none"
            raise ValueError(f"variant {variant!r} changes unknown setting {key!r} (has: {known})")
    return MethodCard(
        name=_name(f"{family}-{variant}") if variant else family,
        family=family,
        variant=variant,
        version=_integer(given["version"]),
        settings=dict(declaration.settings) | changes,
        changes=changes,
        in_encoder=declaration.root == "InEncoderFusion",
        needs_query=bool(declaration.attributes.get("needs_query", False)),
        reads_answers=bool(declaration.attributes.get("reads_answers", False)),
        control=given["control"],
        in_all=bool(given["in_all"]),
        facts=dict(given.get("facts", {})),
        **where,
    )


def _task(declaration: Declaration, where: dict[str, str], packed: Collection[str]) -> TaskCard:
    given = declaration.arguments
    name = _name(given["name"])
    needs = tuple(given["needs"])
    here = name in packed
    return TaskCard(
        name=name,
        version=_integer(given["version"]),
        family=given["family"],
        group=given["group"],
        needs=needs,
        get=given["get"],
        encoder=given["encoder"],
        in_suite=bool(given["in_suite"]),
        missing=() if here else tuple(need for need in needs if not importable(need)),
        **where,
    )


def _name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "all":
        raise ValueError(f"{name!r} is not a name: letters, digits, _ and - (and not 'all')")
    return name


def _integer(version: object) -> int:
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"version must be an integer, got {version!r}")
    return version
