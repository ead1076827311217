"""`fusionbench list`: methods, tasks and encoders."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import Plugins, app
from fusionbench.commands.shared import read


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    ENCODERS = "encoders"


@app.command("list")
def command(
    kind: Annotated[Kind, typer.Argument()],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Show the methods, tasks or encoders that exist here, and how to get those that do not."""
    show(kind.value, plugins=plugin, json=json, stream=sys.stdout)


def show(kind: str, *, plugins: Sequence[str], json: bool, stream: TextIO) -> None:
    """Write what there is of a kind."""
    from fusionbench import listing

    catalog = read(plugins)
    texts = {"methods": listing.methods_text, "tasks": listing.tasks_text}
    if json:
        stream.write(listing.as_json(kind, catalog) + "\n")
    elif kind in texts:
        stream.write(texts[kind](catalog) + "\n")
    else:
        stream.write(listing.encoders_text() + "\n")
