"""`fusionbench list`: methods, tasks and encoders."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from fusionbench.cli.app import Plugins, Strict, app
from fusionbench.cli.shared import read
from fusionbench.registry.catalog import Catalog


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    ENCODERS = "encoders"


@app.command("list")
def command(
    kind: Annotated[Kind, typer.Argument()],
    long: Annotated[
        bool, typer.Option("--long", help="Of methods: paper, parity, parameters, needs.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Show the methods, tasks or encoders that exist here, and how to get those that do not."""
    catalog = read(plugin, strict=strict_plugins)
    form = "json" if json else "long" if long else "short"
    sys.stdout.write(shown(kind.value, catalog, form) + "\n")


def shown(kind: str, catalog: Catalog, form: str) -> str:
    """What there is of a kind: `short`, `long` or `json`. Only methods have a long form."""
    from fusionbench.cli import listing

    texts = {
        ("methods", "short"): listing.methods_text,
        ("methods", "long"): listing.methods_long,
        ("tasks", "short"): listing.tasks_text,
        ("encoders", "short"): listing.encoders_text,
    }
    if form == "json":
        return listing.as_json(kind, catalog)
    return texts.get((kind, form), texts[kind, "short"])(catalog)
