"""`fusionbench merge`: several folders of results into one, in the compact form."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusionbench.cli.app import OK, app, say


@app.command("merge")
def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
) -> None:
    """Join folders of results into a new one with few files; a cell in several is kept once."""
    from fusionbench.records.merge import merge

    count, problems = merge(folders, out)
    say(problems)
    source = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    sys.stdout.write(f"{count} cells and tuning runs from {source}: {out}\n")
    raise typer.Exit(OK)
