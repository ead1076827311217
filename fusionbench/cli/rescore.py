"""`fusionbench rescore`: compute scores again from stored answers."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.cli.app import FAILED, OK, Plugins, app, read, say

_WORDS = {"equal": "equal", "differs": "differ", "left out": "left out"}


@app.command("rescore")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the results.")],
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files.")] = "",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Score the stored answers again and say what differs; exit code 1 on a difference.

    Nothing is written.
    """
    raise typer.Exit(rescore(folder, data_root=data_root, plugins=plugin, stream=sys.stdout))


def rescore(folder: Path, *, data_root: str, plugins: list[str], stream: TextIO) -> int:
    """Print each cell that differs or was left out, and the counts. Returns the exit status."""
    from fusionbench.records.store import Store
    from fusionbench.study.rescore import Rescorer

    store = Store.open(folder)
    counts: Counter[str] = Counter()
    for one in Rescorer(store=store, catalog=read(plugins), data_root=data_root).run():
        counts[one.verdict] += 1
        if one.verdict != "equal":
            spec = one.record.spec
            name = one.record.label or spec.method
            stream.write(f"{one.record.id} {name} on {spec.task}: {one.verdict}\n")
            stream.write("".join(f"  {line}\n" for line in one.details))
    say(store.problems)
    each = ", ".join(f"{counts[key]} {word}" for key, word in _WORDS.items())
    stream.write(f"{counts.total()} cells with answers: {each}\n")
    return FAILED if counts["differs"] else OK
