"""What the names in a claim mean: a row of a table, a set of its columns.

A name that neither this installation nor the folder knows is a slip of the pen (UserError); one
that is known and was not run is a `Gap`.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from fusionbench.api.errors import UserError, unknown
from fusionbench.claims.claim import Claim
from fusionbench.records.pairs import Gap
from fusionbench.records.scores import ScoreTable
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.selection import select_methods, split_inline

SUITE = "suite"
_GLOB = set("*?")


def checked(claim: Claim, catalog: Catalog, tables: Sequence[ScoreTable]) -> Claim:
    """The claim with its methods as the tables spell them. Raises UserError for unknown names."""
    methods = {name for table in tables for name in table.methods}
    tasks = {task.name for table in tables for task in table.tasks} | set(catalog.tasks)
    cards = catalog.tasks.values()
    groups = {SUITE} | {card.group for card in cards if card.in_suite}
    groups |= {task.group for table in tables for task in table.tasks if task.in_suite}
    for name in (*claim.tasks, *claim.more_than_on):
        _check_task(name, tasks, groups - {""}, claim.id)
    return replace(
        claim,
        method=_label(claim.method, catalog, methods, claim.id),
        than=_label(claim.than, catalog, methods, claim.id),
    )


def row(table: ScoreTable, method: str) -> int:
    """The method's row. Raises Gap if it has none, or several versions."""
    if method in table.methods:
        return table.methods.index(method)
    versions = [name for name in table.methods if name.startswith(f"{method} (")]
    if versions:
        raise Gap(f"these results hold {' and '.join(versions)}: a claim names one of them")
    raise Gap(f"{method} was not run")


def columns(table: ScoreTable, names: Sequence[str]) -> list[int]:
    """The columns that names, globs, skills and `suite` mean, in the order of the table."""
    return [
        column
        for column, task in enumerate(table.tasks)
        if any(
            task.name == name
            or (task.in_suite and name in (SUITE, task.group))
            or (_GLOB & set(name) and fnmatchcase(task.name, name))
            for name in names
        )
    ]


def _label(text: str, catalog: Catalog, labels: Collection[str], claim: str) -> str:
    if text in labels:
        return text
    name, inline = split_inline(text)
    if name not in catalog.methods:
        error = unknown("method", name, {*catalog.methods, *labels}, _ALL)
        raise UserError(f"claim {claim}: {error.message}", error.hint)
    return select_methods(catalog, [text])[0].label if inline else name


def _check_task(name: str, tasks: Collection[str], groups: Collection[str], claim: str) -> None:
    if name in groups or name in tasks:
        return
    if _GLOB & set(name) and any(fnmatchcase(task, name) for task in tasks):
        return
    hint = f"known: {', '.join(sorted(groups))}; `fusionbench list tasks` shows all tasks"
    error = unknown("task or skill", name, {*tasks, *groups}, hint)
    raise UserError(f"claim {claim}: {error.message}", error.hint)


_ALL = "`fusionbench list methods` shows all"
