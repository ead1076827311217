"""`fusionbench paper`: a paper's tables in their shape, from our records."""

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import say

NAMES = "mema, dense_connector, lsf or mmfuser"
"""For `--help`; a test keeps it equal to `papers.yaml`."""


@app.command("paper")
def command(
    name: Annotated[str, typer.Argument(help=NAMES)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report/paper.")] = None,
) -> None:
    """Write a paper's tables, its rows filled from our records, its numbers beside them."""
    raise typer.Exit(write(name, folder, out, sys.stdout))


def write(name: str, folder: Path, out: Path | None, stream: TextIO) -> int:
    """Write the page and its tables, and name the page."""
    from fusionbench.records.pairs import Results
    from fusionbench.report.paper import paper, write_paper

    chosen = paper(name)
    results = Results.open(folder)
    say(results.store.problems)
    home = out if out is not None else folder / "report" / "paper"
    stream.write(f"{write_paper(chosen, results, home)}\n")
    return OK
