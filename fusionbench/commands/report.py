"""`fusionbench report`: tables, plots and a page from a folder of results."""

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import found, say


@app.command("report")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report.")] = None,
) -> None:
    """Write tables, a plot and a page from a folder of results."""
    raise typer.Exit(report(folder, out, sys.stdout))


def report(folder: Path, out: Path | None, stream: TextIO) -> int:
    """Write the report of a folder of results and name its page."""
    from fusionbench.closing import report_writer
    from fusionbench.store import Store

    say(found(Store.open(folder)))
    stream.write(f"{report_writer()(folder, out).page}\n")
    return OK
