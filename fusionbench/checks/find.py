"""From a name, a glob, `all`, a path or a class to the methods that are meant."""

from collections.abc import Sequence
from pathlib import Path

from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Method
from fusionbench.checks.subject import Subject
from fusionbench.registry.catalog import Catalog, MethodCard, read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import Chosen, select_methods

Target = str | Path | type[Method]


def find(target: Target, *, plugins: Sequence[str] = ()) -> tuple[Subject, ...]:
    """The methods meant: a name, `name[key=value]`, a glob, `all`, a file, a folder, or a class.

    `all` means every registered name, also those that a study's `all` leaves out. Raises UserError
    for a target that names nothing.
    """
    if isinstance(target, type):
        return (Subject(name=target.__name__, cls=target),)
    text = str(target)
    is_path = text.endswith(".py") or (Path(text).is_dir() and "/" in text)
    catalog = read_catalog([*plugins, text] if is_path else plugins)
    names = [text]
    if is_path:
        names = [card.name for card in _in(text, catalog)]
    elif text == "all":
        names = list(catalog.methods)
    return tuple(map(_subject, select_methods(catalog, names)))


def _in(path: str, catalog: Catalog) -> list[MethodCard]:
    """The methods that a file or folder declares."""
    place = Path(path).resolve()
    found = [c for c in catalog.methods.values() if Path(c.file).resolve().is_relative_to(place)]
    if not found:
        said = [problem.message for problem in catalog.problems if str(place) in problem.source]
        raise UserError(f"no method in {path}", "; ".join(said))
    return found


def _subject(chosen: Chosen) -> Subject:
    card = chosen.card
    return Subject(
        name=chosen.label, cls=load_method(card), settings=dict(chosen.settings), facts=card.facts
    )
