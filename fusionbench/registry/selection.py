"""Resolve names, globs, `all` and settings of a study to methods, tasks and benchmarks."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.register import Setting
from fusionbench.records.cell import QUESTION, QUESTIONS, READER, READERS
from fusionbench.registry.catalog import BenchmarkCard, Catalog, MethodCard, TaskCard

_GLOB = set("*?")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A method with all settings of its cells."""

    label: str
    """Name with changed settings: `mema[reduction=2]`."""
    card: MethodCard
    settings: Mapping[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """A task that is left out because its data is missing."""

    card: TaskCard
    reason: str


def select_methods(
    catalog: Catalog,
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> tuple[Chosen, ...]:
    """The methods of names, globs, `all` and inline settings, in order, without duplicates.

    `settings` holds changes by method name or family; a change for the family does not override the
    settings of a variant, a change by name or inline does. Raises UserError.
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
    """(available, unavailable) tasks of names, globs and `all`.

    `all` holds no benchmark. Raises UserError for an unknown name, for a benchmark, and for a task
    given by name whose data is missing.
    """
    _refuse_benchmarks(catalog, names)
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


def divide_tasks(
    catalog: Catalog, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[BenchmarkCard, ...]]:
    """(names and globs that choose tasks, chosen benchmarks); `all` chooses no benchmark.

    Raises UserError for a name that is neither.
    """
    tasks: list[str] = []
    found: dict[str, BenchmarkCard] = {}
    both = [*catalog.tasks, *catalog.benchmarks]
    for pattern in names:
        chosen = list(catalog.tasks) if pattern == "all" else _matches("task", pattern, both, [])
        if any(name in catalog.tasks for name in chosen):
            tasks.append(pattern)
        found |= {name: catalog.benchmarks[name] for name in chosen if name in catalog.benchmarks}
    return tuple(tasks), tuple(found.values())


def _refuse_benchmarks(catalog: Catalog, names: Sequence[str]) -> None:
    """Raise UserError for a name or glob that chooses benchmarks only."""
    for pattern in names:
        tasks, benchmarks = divide_tasks(catalog, [pattern])
        if benchmarks and not tasks:
            found = ", ".join(card.name for card in benchmarks)
            raise UserError(
                f"{pattern!r} names benchmarks of the track `vlm` ({found}), not tasks to train on",
                "use --track vlm with --data-root, or choose from `fusionbench list tasks`",
            )


def _in_all(catalog: Catalog) -> list[str]:
    return [name for name, card in catalog.methods.items() if card.in_all]


def _matches(kind: str, pattern: str, known: Iterable[str], everything: list[str]) -> list[str]:
    if pattern == "all":
        return everything
    if pattern in known:
        return [pattern]
    found = [name for name in known if fnmatchcase(name, pattern)] if _GLOB & set(pattern) else []
    if not found:
        raise unknown(kind, pattern, known, f"`fusionbench list {kind}s` shows all", globs=True)
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
        if complete[key] and complete[key] not in allowed:
            raise unknown(key, str(complete[key]), allowed)
        if not complete[key]:
            del complete[key]
    return Chosen(label=name, card=card, settings=complete)


def _refuse_unused(
    catalog: Catalog, settings: Mapping[str, object], chosen: Iterable[Chosen]
) -> None:
    """Raise UserError for settings of a method that is unknown or not chosen."""
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


_INLINE = re.compile(r"([^\[\]]+)\[(.*)\]")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a word",
    tuple: "integers such as (1,2,3)",
}


def split_inline(text: str) -> tuple[str, dict[str, str]]:
    """`mema[reduction=2,query=false]` -> name or glob, settings as text."""
    match = _INLINE.fullmatch(text.strip())
    if match is None or "=" not in match[2]:
        return text.strip(), {}
    settings = {}
    # A comma separates settings only where a `key=` follows: tuples have commas too.
    for part in re.split(r",(?=\s*\w+\s*=)", match[2]):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"cannot read {part!r} in {text!r}", "write name[key=value,key=value]")
        if key.strip() in settings:
            raise UserError(f"{key.strip()} stands twice in {text!r}", "keep one of the two")
        settings[key.strip()] = value.strip()
    return match[1].strip(), settings


def split_names(text: str) -> list[str]:
    """Split at commas outside brackets: `last, mema[reduction=2,query=false]` has two names."""
    parts = re.split(r",(?![^\[\]]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def inline(name: str, settings: Mapping[str, object]) -> str:
    """Settings of a file as inline text: `layer[index=4]`."""
    typed = [f"{key}={shown(_plain(value))}" for key, value in settings.items()]
    return f"{name}[{','.join(typed)}]" if typed else name


def split_assignment(text: str) -> tuple[str, str, str]:
    """`mema.reduction=2` -> name, key, value as text."""
    target, equals, value = text.partition("=")
    name, dot, key = target.strip().partition(".")
    if not (equals and dot and name and key):
        raise UserError(f"cannot read --set {text!r}", "write --set method.key=value")
    return name, key.strip(), value.strip()


def checked(
    name: str, defaults: Mapping[str, Setting], given: Mapping[str, object]
) -> dict[str, Setting]:
    """`given`, converted to the types of `defaults`. Raises UserError for a key or type."""
    result = {}
    for key, value in given.items():
        if key not in defaults:
            known = ", ".join(f"{k}={shown(v)}" for k, v in defaults.items())
            raise unknown(
                "setting",
                f"{name}.{key}",
                [f"{name}.{k}" for k in defaults],
                (f"settings of {name}: {known}" if known else f"{name} has no settings"),
            )
        result[key] = coerce(f"{name}.{key}", value, type(defaults[key]))
    return result


def coerce(what: str, value: object, kind: type) -> Setting:
    """`value`, or the value of its text, as `kind`. Raises UserError for another type."""
    try:
        found = _read(value, kind)
    except (ValueError, OverflowError):
        found = None
    if found is None or (isinstance(found, float) and not math.isfinite(found)):
        hint = "`fusionbench list methods` shows all settings with their defaults"
        raise UserError(f"{what} must be {_KINDS[kind]}, got {value!r}", hint)
    return found


def _plain(value: Any) -> Setting:
    """Lists of YAML as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _read(value: Any, kind: type) -> Setting | None:
    """None for a value of the wrong type; ValueError for text that does not parse."""
    if kind is tuple:
        return _integers(value)
    if isinstance(value, str):
        if kind is bool:
            return _WORDS.get(value.lower())
        return value if kind is str else kind(value)
    if isinstance(value, bool) != (kind is bool):
        return None
    if kind is float and isinstance(value, int):
        return float(value)
    fits = isinstance(value, kind)
    return value if fits else None


def _integers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, str):
        return tuple(int(part) for part in value.strip("()[] ").split(",") if part.strip())
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)
    return None


def shown(value: Setting) -> str:
    """A setting as text: `false`, `(1,2)`, `0.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(str(item) for item in value)})"
    return str(value)


def label(name: str, defaults: Mapping[str, Setting], settings: Mapping[str, Setting]) -> str:
    """The name with the settings that differ from `defaults`: `mema[reduction=2]`."""
    changed = [
        f"{key}={shown(settings[key])}"
        for key in sorted(settings)
        if settings[key] != defaults[key]
    ]
    return f"{name}[{','.join(changed)}]" if changed else name
