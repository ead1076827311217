"""`fusionbench diff`: why two folders of results differ."""

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import write_rows


@app.command("diff")
def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of results.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[Path | None, typer.Option(help="Write the differences as CSV, too.")] = None,
) -> None:
    """Compare two folders: what was asked, what ran, where, and the paired score differences."""
    raise typer.Exit(diff(first, second, out=out, stream=sys.stdout))


def diff(first: Path, second: Path, *, out: Path | None, stream: TextIO) -> int:
    """Write the comparison as Markdown, and every difference as CSV where asked."""
    from fusionbench.records.pairs import Results
    from fusionbench.report.diff.text import Folder, page

    a, b = (Folder(name=str(name), results=Results.open(name)) for name in (first, second))
    text, rows = page(a, b)
    stream.write(text)
    if out is not None:
        write_rows(out, rows)
    return OK
