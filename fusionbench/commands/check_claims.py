"""`fusionbench check-claims`: sentences of papers against a folder of results."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import FAILED, OK, Plugins, app
from fusionbench.commands.shared import read, say, write_rows


@app.command("check-claims")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    claims: Annotated[str, typer.Argument(help="A YAML file, or `published`.")] = "published",
    out: Annotated[Path | None, typer.Option(help="Write the answers as CSV, too.")] = None,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Answer each claim with holds, fails or undecided; exit code 1 if one fails."""
    raise typer.Exit(check(folder, claims, out=out, plugins=plugin, stream=sys.stdout))


def check(
    folder: Path, claims: str, *, out: Path | None, plugins: Sequence[str], stream: TextIO
) -> int:
    """Write the answers as Markdown, and as CSV where asked."""
    from fusionbench.records.pairs import Results
    from fusionbench.report.claims.answers import Verdict, answers
    from fusionbench.report.claims.reading import load_claims
    from fusionbench.report.claims.text import long_rows, page

    stated = load_claims(claims)
    results = Results.open(folder)
    say(results.store.problems)
    found = answers(stated, results, read(plugins))
    stream.write(page(found, str(folder)))
    if out is not None:
        write_rows(out, long_rows(found))
    return FAILED if any(answer.verdict is Verdict.FAILS for answer in found) else OK
