"""Whether plug-ins can be used: each is imported for real, in a process of its own.

A catalog only reads source. What an import raises, prints or breaks, even a crash or an endless
loop, stays in the child. No torch in this process.
"""

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from fusionbench.api.errors import UserError
from fusionbench.cards import Card
from fusionbench.catalog import Catalog
from fusionbench.discovery import BUILT_IN, Place

_PATIENCE = 120.0
"""Seconds an import may take; torch alone may need ten from a cold disk."""
Named = tuple[str, str, str]
"""Kind, name and class of something that a file declares."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One file of a plug-in."""

    source: str
    """Its distribution and version, or its path."""
    file: str
    declares: tuple[str, ...]
    """`method blend`, `task toy`: what can be used."""
    problems: tuple[str, ...]
    """What reading its source brought to light."""
    traceback: str = ""
    """What importing it raised."""

    @property
    def sound(self) -> bool:
        """Whether all of it can be used."""
        return not self.problems and not self.traceback


def check_plugins(catalog: Catalog) -> list[Checked]:
    """Import every plug-in that was found, and say of each what it brings and what is wrong."""
    found = []
    for door in catalog.doors:
        if door.source == BUILT_IN:
            continue
        if door.problem or not door.places:
            told = door.problem or "no Python file in it"
            found.append(Checked(source=door.source, file="", declares=(), problems=(told,)))
        found += [_checked(catalog, place, door.source) for place in door.places]
    return found


def require_sound(catalog: Catalog) -> None:
    """Raise UserError if a plug-in cannot be used, in whole or in part."""
    broken = [one for one in check_plugins(catalog) if not one.sound]
    if not broken:
        return
    first = broken[0]
    why = first.problems[0] if first.problems else first.traceback.splitlines()[-1]
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    raise UserError(f"plug-in {_name(first)}: {why}{more}", "`fusionbench doctor` shows all of it")


def _checked(catalog: Catalog, place: Place, source: str) -> Checked:
    named = _declared(catalog, place)
    problems = tuple(
        problem.message
        for problem in catalog.problems
        if problem.source == source or str(place.file) in problem.source
    )
    return Checked(
        source=place.source,
        file=str(place.file),
        declares=tuple(f"{kind} {name}" for kind, name, _ in named),
        problems=problems,
        traceback=_import_apart(place.module, named),
    )


def _declared(catalog: Catalog, place: Place) -> list[Named]:
    cards: list[tuple[str, Card]] = [("method", card) for card in catalog.methods.values()]
    cards += [("task", card) for card in catalog.tasks.values()]
    cards += [("encoder", card) for card in catalog.encoders.values()]
    file = str(place.file)
    return [(kind, card.name, card.cls) for kind, card in cards if card.file == file]


def _import_apart(module: str, named: Sequence[Named]) -> str:
    """The traceback of an import in another process; empty if all went well."""
    # Spawned like a worker, with the same search path.
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_import, args=(theirs, module, list(named)), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_PATIENCE):
            return f"its import did not end within {_PATIENCE:.0f} s"
        return str(ours.recv())
    except EOFError:
        child.join(5)
        return f"its import ended the process (exit code {child.exitcode})"
    finally:
        child.kill()
        child.join()
        ours.close()


def _import(connection: Connection, module: str, named: list[Named]) -> None:
    from fusionbench.plugins import import_from, require_kind

    told = ""
    try:
        with redirect_stdout(sys.stderr):
            imported = import_from(module)
            for kind, name, cls in named:
                require_kind(kind, name, getattr(imported, cls, None))
    # Anything at all: sys.exit in a plug-in must not pass for success.
    except BaseException:
        told = traceback.format_exc().strip()
    connection.send(told)


def _name(checked: Checked) -> str:
    file = checked.file
    return f"{checked.source} ({file})" if file and file != checked.source else checked.source
