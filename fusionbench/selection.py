"""Names, globs, `all` and settings from a study -> the methods and tasks they mean."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fusionbench.api.errors import UserError, one_of, unknown
from fusionbench.api.register import Setting
from fusionbench.catalog import Catalog, MethodCard, TaskCard
from fusionbench.records.cell import QUESTION, QUESTIONS, READER, READERS
from fusionbench.settings import checked, label, split_inline

_GLOB = set("*?")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A method with all its settings, as it will run."""

    label: str
    """The name with changed settings: `mema[reduction=2]`."""
    card: MethodCard
    settings: Mapping[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """A task that was left out since its data is not here."""

    card: TaskCard
    reason: str


def select_methods(
    catalog: Catalog,
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> tuple[Chosen, ...]:
    """The methods meant by names, globs, `all` and inline settings, in order, each once.

    `settings` holds changes by method name or family; a family's change leaves alone what a
    variant is about, a change by name or inline does not. Raises UserError.
    """
    settings = settings or {}
    chosen: dict[str, Chosen] = {}
    for text in names:
        pattern, inline = split_inline(text)
        for name in _matches("method", pattern, catalog.methods, _in_all(catalog)):
            one = _choose(catalog.methods[name], settings, inline)
            chosen.setdefault(one.label, one)
    _refuse_unused(catalog, settings, chosen.values())
    return tuple(chosen.values())


def select_tasks(
    catalog: Catalog, names: Sequence[str]
) -> tuple[tuple[TaskCard, ...], tuple[Unavailable, ...]]:
    """The tasks meant by names, globs and `all`; those of a glob or `all` without data apart.

    Raises UserError for an unknown name and for a task asked for by name whose data is missing.
    """
    here: dict[str, TaskCard] = {}
    left_out: dict[str, Unavailable] = {}
    for pattern in names:
        for name in _matches("task", pattern, catalog.tasks, list(catalog.tasks)):
            card = catalog.tasks[name]
            if card.available:
                here[name] = card
                continue
            left_out[name] = Unavailable(card=card, reason=_why(card))
            if name == pattern:
                raise UserError(f"task {name!r} is not available: {_why(card)}", _how(card))
    if not here:
        raise UserError("none of the chosen tasks is available", _all_ways(left_out.values()))
    return tuple(here.values()), tuple(left_out.values())


def _in_all(catalog: Catalog) -> list[str]:
    return [name for name, card in catalog.methods.items() if card.in_all]


def _matches(kind: str, pattern: str, known: Iterable[str], everything: list[str]) -> list[str]:
    if pattern == "all":
        return everything
    if pattern in known:
        return [pattern]
    found = [name for name in known if fnmatchcase(name, pattern)] if _GLOB & set(pattern) else []
    if not found:
        raise unknown(kind, pattern, known, f"`fusionbench list {kind}s` shows all")
    return found


def _choose(
    card: MethodCard, settings: Mapping[str, Mapping[str, object]], inline: Mapping[str, str]
) -> Chosen:
    defaults = {**card.settings, READER: card.reader, QUESTION: card.question}
    family = checked(card.family, defaults, settings.get(card.family, {}))
    if card.name != card.family:
        family = {key: value for key, value in family.items() if key not in card.changes}
    own = checked(card.name, defaults, settings.get(card.name, {}))
    complete = {**defaults, **family, **own, **checked(card.name, defaults, inline)}
    name = label(card.name, defaults, complete)
    for key, allowed in ((READER, READERS), (QUESTION, QUESTIONS)):
        if complete[key]:
            one_of(f"{card.name}.{key}", str(complete[key]), allowed)
        else:
            del complete[key]
    return Chosen(label=name, card=card, settings=complete)


def _refuse_unused(
    catalog: Catalog, settings: Mapping[str, object], chosen: Iterable[Chosen]
) -> None:
    """A setting for a method that does not run is a slip of the pen, not a wish."""
    cards = [one.card for one in chosen]
    used = {card.name for card in cards} | {card.family for card in cards}
    known = set(catalog.methods) | {card.family for card in catalog.methods.values()}
    for name in settings:
        if name not in known:
            raise unknown("method", name, known, "`fusionbench list methods` shows all")
        if name not in used:
            raise UserError(
                f"settings for {name!r}, but it is not among the chosen methods",
                f"add it to --methods, or leave out --set {name}.…",
            )


def _why(card: TaskCard) -> str:
    reason = f"needs {', '.join(card.missing)}"
    return f"{reason}; get it with: {card.get}" if card.get else reason


def _how(card: TaskCard) -> str:
    return f"get it with: {card.get}" if card.get else f"install {', '.join(card.missing)}"


def _all_ways(left_out: Iterable[Unavailable]) -> str:
    return "; ".join(sorted({_how(one.card) for one in left_out})) or "name at least one task"
