"""`fusionbench import-lmms`: results of lmms-eval as records of the track `vlm`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.cli.app import OK, app, say

if TYPE_CHECKING:
    from fusionbench.records.imports import Imported


@app.command("import-lmms")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="lmms-eval's --output_path.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of results to write into.")
    ] = Path("results/lmms"),
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Our own cells, if not where model_args says."),
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="TEXT", help="Version of lmms-eval; its files do not name it.")
    ] = "",
) -> None:
    """Read results and samples of lmms-eval into records of the track vlm."""
    raise typer.Exit(write(folder, out, results, version, sys.stdout))


def write(folder: Path, out: Path, results: Path | None, version: str, stream: TextIO) -> int:
    """Import a folder and print one line for each record. Returns the exit code.

    Raises UserError for files that cannot be read; nothing is written then.
    """
    from fusionbench.records.imports import import_folder

    found, problems = import_folder(folder, out, results=results, version=version)
    say(problems)
    for one in found:
        stream.write(f"{_line(one)}\n")
    fresh = sum(one.fresh for one in found)
    stream.write(f"{fresh} records imported, {len(found) - fresh} were there: {out}\n")
    return OK


def _line(one: "Imported") -> str:
    record = one.record
    score = "no score" if record.score is None else f"{record.metric} {record.score:.4f}"
    of = f"{score} of {record.examples} questions"
    notes = "".join(f"; {note}" for note in record.notes)
    return f"{record.label} on {record.spec.task}: {of}{notes}"
