"""From a name, a glob, `all`, a path or a class to the methods that are meant."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionbench.catalog import Catalog, MethodCard, read_catalog
from fusionbench.checks.subject import Subject
from fusionbench.errors import UserError
from fusionbench.fusion import Method
from fusionbench.plugins import load_method
from fusionbench.records import Setting
from fusionbench.selection import select_methods

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
    if is_path:
        return tuple(_subject(card.name, card, card.settings) for card in _in(text, catalog))
    if text == "all":
        return tuple(_subject(name, card, card.settings) for name, card in catalog.methods.items())
    chosen = select_methods(catalog, [text])
    return tuple(_subject(each.label, each.card, each.settings) for each in chosen)


def _in(path: str, catalog: Catalog) -> list[MethodCard]:
    """The methods that a file or folder declares."""
    place = Path(path).resolve()
    found = [c for c in catalog.methods.values() if Path(c.file).resolve().is_relative_to(place)]
    if not found:
        said = [problem.message for problem in catalog.problems if str(place) in problem.source]
        raise UserError(f"no method in {path}", "; ".join(said))
    return found


def _subject(name: str, card: MethodCard, settings: Mapping[str, Setting]) -> Subject:
    return Subject(name=name, cls=load_method(card), settings=dict(settings), facts=card.facts)
