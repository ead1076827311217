"""`fusionbench paper`: a paper's tables in their shape, from our records."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import say


class Name(StrEnum):
    """The papers whose tables are known (a test keeps this equal to `papers.yaml`)."""

    MEMA = "mema"
    DENSE_CONNECTOR = "dense_connector"
    LSF = "lsf"
    MMFUSER = "mmfuser"


@app.command("paper")
def command(
    name: Annotated[Name, typer.Argument()],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report/paper.")] = None,
) -> None:
    """Write a paper's tables, its rows filled from our records, its numbers beside them."""
    raise typer.Exit(write(name.value, folder, out, sys.stdout))


def write(name: str, folder: Path, out: Path | None, stream: TextIO) -> int:
    """Write the page and its tables, and name the page."""
    from fusionbench.paired.results import Results
    from fusionbench.report.paper.pages import write_paper
    from fusionbench.report.paper.shapes import paper

    results = Results.open(folder)
    say(results.store.problems)
    home = out if out is not None else folder / "report" / "paper"
    stream.write(f"{write_paper(paper(name), results, home)}\n")
    return OK
