"""`fusionbench report`: tables, plots and a page from a folder of results."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import say

if TYPE_CHECKING:
    from fusionbench.report.build import Wanted

FORMATS = "md,tex,csv,html"


@app.command("report")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report.")] = None,
    baseline: Annotated[
        str, typer.Option(metavar="M", help="Compare with M; all contrasts are then exploratory.")
    ] = "",
    table: Annotated[str, typer.Option(metavar="NAME", help="Write one table only.")] = "",
    formats: Annotated[
        str, typer.Option("--format", metavar=FORMATS, help="Some of them, with commas.")
    ] = FORMATS,
) -> None:
    """Write tables, a plot and a page from a folder of results."""
    from fusionbench.api.errors import UserError
    from fusionbench.closing import report_writer

    report_writer()
    from fusionbench.report.build import Wanted

    names = tuple(name.strip() for name in formats.split(",") if name.strip())
    if not names:
        raise UserError("--format names no format", f"some of {FORMATS}")
    wanted = Wanted(formats=names, table=table, baseline=baseline or None)
    raise typer.Exit(report(folder, out, sys.stdout, wanted))


def report(folder: Path, out: Path | None, stream: TextIO, wanted: "Wanted | None" = None) -> int:
    """Write the report of a folder of results and name its page, or the files of one table."""
    from fusionbench.closing import report_writer

    paths = report_writer()(folder, out, wanted, hear=say)
    files = paths.written if wanted and wanted.table else (paths.page,)
    stream.write("".join(f"{file}\n" for file in files))
    return OK
