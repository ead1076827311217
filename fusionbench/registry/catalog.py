"""Methods, tasks, benchmarks and encoders by name, with versions and settings, read from source.

A built-in is kept over a plug-in of the same name; a broken plug-in is a `Problem`, not an error.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, UserError, did_you_mean, one_of
from fusionbench.api.register import Kind, Setting
from fusionbench.api.sources import Needs
from fusionbench.models.encoders import catalog as built_in
from fusionbench.models.encoders.card import EncoderCard, fingerprint, patches
from fusionbench.models.encoders.catalog import is_built_in
from fusionbench.records.cell import QUESTION, QUESTIONS, READER, READERS
from fusionbench.registry.cards import BenchmarkCard, Card, MethodCard, PluggedEncoder, TaskCard
from fusionbench.registry.discovery import (
    BUILT_IN,
    CodeSource,
    Declaration,
    Location,
    importable,
    read_source,
    sources,
)

__all__ = [
    "BenchmarkCard",
    "Card",
    "Catalog",
    "MethodCard",
    "PluggedEncoder",
    "TaskCard",
    "read_catalog",
]

_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that can be run, sorted by name."""

    methods: Mapping[str, MethodCard]
    tasks: Mapping[str, TaskCard]
    benchmarks: Mapping[str, BenchmarkCard] = field(default_factory=dict)
    """Of the track `vlm`; no task has the name of a benchmark."""
    encoders: Mapping[str, PluggedEncoder] = field(default_factory=dict)
    """Of plug-ins only; built-in ones are in `fusionbench.models.encoders.catalog`."""
    problems: tuple[Problem, ...] = ()
    sources: tuple[CodeSource, ...] = ()
    """Where the cards were found, unusable plug-ins included."""


@dataclass
class _Draft:
    cards: dict[Kind, dict[str, Any]]
    problems: list[Problem] = field(default_factory=list)
    places: dict[tuple[Kind, str], tuple[Location, int]] = field(default_factory=dict)
    """File and line of each card."""

    def note(self, location: Location | CodeSource, message: str, hint: str = "") -> None:
        source = str(location.file) if isinstance(location, Location) else location.name
        if isinstance(location, Location) and location.source not in (BUILT_IN, str(location.file)):
            source = f"{location.source} ({location.file})"
        self.problems.append(Problem(source=source, message=message, hint=hint))

    def add(self, location: Location, kind: Kind, card: Card, line: int) -> None:
        cards = self.cards[kind]
        other = cards.get(card.name) or self._namesake(kind, card)
        if other is None and not (kind == "encoder" and is_built_in(card.name)):
            cards[card.name] = card
            self.places[kind, card.name] = (location, line)
            return
        keeps = BUILT_IN if other is None or other.source == BUILT_IN else f"in {other.file}"
        self.note(
            location,
            f"line {line}: {kind} {card.name!r} is already {keeps}, which is kept",
            f'choose another name, such as @{kind}("my_{card.name}", ...)',
        )

    def check_controls(self) -> None:
        """Note each method whose matched control is a name that no method has."""
        methods = self.cards["method"]
        for card in methods.values():
            name = card.control.partition("[")[0]
            if _NAME.fullmatch(name) and name not in (*methods, "none"):
                location, line = self.places["method", card.name]
                self.note(
                    location,
                    f"line {line}: control={card.control!r} of method {card.name!r} is no method"
                    f"{did_you_mean(name, methods)}",
                    'name a method, or say why there is none: control="none: it reads one layer"',
                )

    def _namesake(self, kind: Kind, card: Card) -> Card | None:
        """The benchmark of a task's name, or the task of a benchmark's."""
        pair: tuple[Kind, Kind] = ("task", "benchmark")
        return next(
            (self.cards[k].get(card.name) for k in pair if kind in pair and k != kind), None
        )


def read_catalog(plugins: Sequence[str] = (), *, packed: Collection[str] = ()) -> Catalog:
    """Read built-ins, `plugins` (files or folders), FUSIONBENCH_PLUGINS and entry points.

    Tasks named in `packed` do not need their packages. Raises UserError for a path in `plugins`
    that does not exist.
    """
    draft = _Draft(cards={"method": {}, "task": {}, "benchmark": {}, "encoder": {}})
    seen: set[str] = set()
    origins = tuple(sources(plugins))
    for origin in origins:
        if origin.problem:
            draft.note(origin, origin.problem)
            continue
        locations = [location for location in origin.locations if str(location.file) not in seen]
        seen.update(str(location.file) for location in locations)
        found = [_read(draft, location, packed) for location in locations]
        if not any(found) and (locations or not origin.locations):
            draft.note(origin, "declares no method, task, benchmark or encoder that can be used")
    draft.check_controls()
    return Catalog(
        methods=dict(sorted(draft.cards["method"].items())),
        tasks=dict(sorted(draft.cards["task"].items())),
        benchmarks=dict(sorted(draft.cards["benchmark"].items())),
        encoders=dict(sorted(draft.cards["encoder"].items())),
        problems=tuple(draft.problems),
        sources=origins,
    )


def require_usable(catalog: Catalog, plugins: Sequence[str]) -> None:
    """Raise UserError for the first problem of a plug-in that the user named.

    Those of the environment and of installed packages stop nothing: they may be somebody else's.
    """
    for source in catalog.sources:
        if source.name not in plugins:
            continue
        names = {source.name, *(str(location.file) for location in source.locations)}
        for problem in catalog.problems:
            if problem.source in names:
                line, _, said = problem.message.partition(": ")
                number = line.removeprefix("line ")
                place = (
                    f"{problem.source}:{number}: " if number.isdecimal() else f"{problem.source}: "
                )
                raise UserError(
                    place + (said if number.isdecimal() else problem.message),
                    problem.hint or "`fusionbench doctor --plugin` shows all of it",
                )


def _read(draft: _Draft, location: Location, packed: Collection[str]) -> int:
    """Add the cards of one file; returns its number of declarations, valid or not."""
    declarations, problems = read_source(location.file)
    for problem in problems:
        draft.note(location, str(problem), problem.hint)
    for declaration in declarations:
        try:
            for card in _cards(location, declaration, packed):
                draft.add(location, declaration.kind, card, declaration.line)
        except (TypeError, ValueError, AttributeError) as error:
            draft.note(location, f"line {declaration.line}: class {declaration.cls}: {error}")
    return len(declarations) + len(problems)


def _cards(location: Location, declaration: Declaration, packed: Collection[str]) -> Iterator[Card]:
    where = {"module": location.module, "cls": declaration.cls, "file": str(location.file)}
    where["source"] = location.source
    if declaration.kind != "encoder":
        where["about"] = declaration.about
    if declaration.kind == "task":
        yield _task(declaration, where, packed)
        return
    if declaration.kind == "benchmark":
        yield _benchmark(declaration, where)
        return
    if declaration.kind == "encoder":
        yield _encoder(declaration, where)
        return
    for variant, changes in (declaration.arguments["variants"] or {"": {}}).items():
        yield _method(declaration, where, variant, dict(changes))


def _method(
    declaration: Declaration, where: dict[str, str], variant: str, changes: dict[str, Setting]
) -> MethodCard:
    given = declaration.arguments
    family = _name(given["family"])
    switches = {key: tuple(levels) for key, levels in (given["switches"] or {}).items()}
    for what, keys in ((f"variant {variant!r}", changes), ("switches", switches)):
        for key in keys:
            if key not in declaration.settings:
                known = ", ".join(declaration.settings) or "none"
                raise ValueError(f"{what} changes unknown setting {key!r} (has: {known})")
    details = {key: dict(values) for key, values in (given["details"] or {}).items()}
    if stray := set(details) - set(given["variants"] or {"": {}}):
        raise ValueError(f"details of unknown variants: {', '.join(sorted(stray))}")
    settings, tries = {**declaration.settings, **changes}, given["tries"]
    own = details.get(variant, {})
    control = str(own.pop("control", given["control"]))
    if tries and tries not in settings:
        raise ValueError(f"tries names {tries!r}, which is not a setting")
    if taken := {READER, QUESTION} & set(settings):
        raise ValueError(f"{', '.join(taken)} is an engine-level setting of every method")
    return MethodCard(
        name=_name(f"{family}-{variant}") if variant else family,
        family=family,
        variant=variant,
        version=_integer(given["version"]),
        settings={k: v for k, v in settings.items() if k != tries},
        changes=changes,
        in_encoder=declaration.root == "InEncoderFusion" and _writes(declaration, settings),
        needs_query=bool(declaration.attributes.get("needs_query", False)),
        reads_answers=bool(declaration.attributes.get("reads_answers", False)),
        control=control,
        in_all=_in_all(given["in_all"], variant),
        representative=variant == _representative(given),
        tries=tries,
        reader=one_of(READER, given[READER], ("", *READERS)),
        question=one_of(QUESTION, given[QUESTION], ("", *QUESTIONS)),
        facts=_facts(declaration, own),
        switches=switches,
        idle=tuple((dict(settings), tuple(names)) for settings, names in given["idle"]),
        **where,
    )


def _facts(declaration: Declaration, details: dict[str, Any]) -> dict[str, Any]:
    """Facts of the decorator and its details; `needs` and `identity` default to the class."""
    attributes = declaration.attributes
    wants = {
        "query": attributes.get("needs_query", False),
        "grid": attributes.get("needs_grid", False),
        "encoder gradients": declaration.root == "InEncoderFusion"
        and attributes.get("writes", True),
    }
    known: dict[str, Any] = {"needs": ", ".join(name for name, wanted in wants.items() if wanted)}
    known |= {"identity": bool(attributes.get("identity_at_init", False))}
    return known | dict(declaration.arguments.get("facts", {})) | details


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
        reads=_reads(declaration, where["file"]),
        **where,
    )


def _reads(declaration: Declaration, file: str) -> tuple[str, ...] | None:
    """The files and folders that a task reads; None where it does not say."""
    attributes = declaration.attributes
    if declaration.root == "FolderTask":
        named = (attributes.get(name) for name in ("images", "questions"))
        return tuple(str(one) for one in named if one)
    if "reads" not in attributes:
        return None
    if not isinstance(given := attributes["reads"], tuple | list):
        raise ValueError(f'reads must name files and folders, like ("labels.csv",), got {given!r}')
    return tuple(str(Path(file).parent / str(one)) for one in given)


def _benchmark(declaration: Declaration, where: dict[str, str]) -> BenchmarkCard:
    given, facts = declaration.arguments, declaration.attributes
    name = _name(given["name"])
    hub = dict(facts.get("hub", {}))
    if hub and not {"id", "split"} <= hub.keys() <= {"id", "config", "split"}:
        raise ValueError(f"hub must have id, split and perhaps config, got {sorted(hub)}")
    needs = Needs(
        folder=str(facts.get("folder", "") or name),
        files=dict(facts.get("files", {})),
        tsv=str(facts.get("tsv", "")),
        hub=hub,
    )
    if not (needs.files or needs.tsv or needs.hub):
        raise ValueError("names no data: files, tsv or hub must be class attributes of literals")
    return BenchmarkCard(
        name=name,
        version=_integer(given["version"]),
        family=given["family"],
        group=given["group"],
        in_suite=bool(given["in_suite"]),
        needs=needs,
        **where,
    )


def _writes(declaration: Declaration, settings: Mapping[str, Setting]) -> bool:
    silent_if = declaration.attributes.get("silent_if", {})
    writes = bool(declaration.attributes.get("writes", True))
    return writes and not any(settings[key] in values for key, values in silent_if.items())


def _in_all(declared: object, variant: str) -> bool:
    return variant in declared if isinstance(declared, tuple) else bool(declared)


def _representative(given: Mapping[str, Any]) -> str:
    """The declared variant, else the plain one, else the first in `all`."""
    variants = tuple(given["variants"] or {"": {}})
    if declared := str(given["representative"]):
        return one_of("representative", declared, variants)
    return min(variants, key=lambda name: (name != "", not _in_all(given["in_all"], name)))


def _encoder(declaration: Declaration, where: dict[str, str]) -> PluggedEncoder:
    given: dict[str, Any] = dict(declaration.arguments)
    about = given.pop("source") or f"plug-in {where['source']}"
    needs = tuple(given.pop("needs"))
    for fact in ("version", "layers", "dim", "patch", "size", "prefix"):
        _integer(given[fact], fact)
    if given["patch"] < 1 or given["size"] % given["patch"]:
        raise ValueError(f"size {given['size']} is not a multiple of patch {given['patch']}")
    given |= {"name": _name(given["name"]), "weights": tuple(given["weights"])}
    return PluggedEncoder(
        **given | where,
        about=about,
        needs=needs,
        resizable="image_size" in declaration.settings,
        missing=tuple(need for need in needs if not importable(need)),
    )


def _name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "all":
        raise ValueError(f"{name!r} is not a name: letters, digits, _ and - (and not 'all')")
    return name


def _integer(value: object, what: str = "version") -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    return value


_ENCODERS = "`fusionbench list encoders` shows what is here"
OFFLINE = (
    "without a network: name a folder (--encoder hf:/path or timm:/path), set HF_HOME to a cache "
    "that holds it, or run `fusionbench pack` where there is one and set FUSIONBENCH_DATA here"
)


def describe(catalog: Catalog, name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of an encoder, without importing or downloading anything.

    Raises ValueError for an unknown name (with the nearest one) or a size that it cannot take.
    """
    if name in catalog.encoders:
        return _card(catalog.encoders[name], image_size)
    near = did_you_mean(name, catalog.encoders)
    if near and ":" not in name and not is_built_in(name):
        raise ValueError(f"no encoder {name!r}{near}")
    return built_in.describe(name, image_size=image_size)


def plugged(catalog: Catalog) -> list[EncoderCard]:
    """Cards of all plug-in encoders."""
    return [_card(one, 0) for one in catalog.encoders.values()]


def _card(declared: PluggedEncoder, image_size: int) -> EncoderCard:
    size = image_size or declared.size
    if size != declared.size and not declared.resizable:
        raise ValueError(f"{declared.name} reads images of {declared.size} pixels only, got {size}")
    files = [Path(declared.file).parent / name for name in declared.weights]
    absent = [file.name for file in files if not file.is_file()]
    architecture = {
        "plugin": declared.name, "version": declared.version, "layers": declared.layers,
        "dim": declared.dim, "patch": declared.patch, "prefix": declared.prefix,
    }  # fmt: skip
    lacking = [*declared.missing, *absent]
    return EncoderCard(
        name=declared.name,
        source=declared.about,
        available=not lacking,
        get=(declared.get or f"needs {', '.join(lacking)}") if lacking else "",
        path=declared.file,
        weights="" if lacking else fingerprint(files, architecture=architecture),
        layers=declared.layers,
        dim=declared.dim,
        grid=patches(size, patch=declared.patch, name=declared.name),
        prefix=declared.prefix,
        size=size,
        origin=declared.source,
        module=declared.module,
        cls=declared.cls,
    )


def found_encoder(  # noqa: PLR0913  (how the weights may be had)
    catalog: Catalog,
    name: str,
    *,
    image_size: int,
    download: bool,
    absent: bool,
    hear: Callable[[str], None],
) -> EncoderCard:
    """An encoder's card with the fingerprint of its weights, which are fetched if `download`.

    `absent`: without weights where the sizes are known. `hear` gets a sentence before they are
    fetched. Raises UserError.
    """
    try:
        card = describe(catalog, name, image_size=image_size)
        if card.available or (absent and card.layers):
            return card
        if download and name not in catalog.encoders:
            # It loads torch, which a study whose weights are here does without.
            from fusionbench.models.encoders.fetch import fetch

            hear(f"fetching the weights of {name}")
            fetch(name)
            return describe(catalog, name, image_size=image_size)
    except UserError:
        raise
    except OSError as error:
        raise UserError(str(error), OFFLINE) from error
    except ValueError as error:
        raise UserError(str(error), _ENCODERS) from error
    raise UserError(f"the weights of encoder {name!r} are not here", card.get)
