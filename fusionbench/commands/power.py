"""`fusionbench power`: what a study can find, and how many seeds an effect would need."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import say, write_rows

if TYPE_CHECKING:
    from fusionbench.report.power.planning import Wanted


@app.command("power")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    effect: Annotated[float, typer.Option(help="Points that should be found.")] = 1.0,
    pilot: Annotated[bool, typer.Option("--pilot", help="Plan cautiously from few seeds.")] = False,
    baseline: Annotated[str, typer.Option(help="Default: the study's.")] = "",
    methods: Annotated[list[str], typer.Option(help="Default: the study's contrasts.")] = [],  # noqa: B006
    contrasts: Annotated[
        int, typer.Option(min=0, help="Correct for so many; 0: those planned.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write every contrast as CSV, too.")] = None,
) -> None:
    """Minimum detectable effects per task and for the suite, and the seeds an effect needs."""
    from fusionbench.registry.selection import split_names
    from fusionbench.report.power.planning import Wanted

    names = tuple(name for text in methods for name in split_names(text))
    wanted = Wanted(
        effect=effect, pilot=pilot, baseline=baseline, methods=names, contrasts=contrasts
    )
    raise typer.Exit(power(folder, wanted, out=out, stream=sys.stdout))


def power(folder: Path, wanted: "Wanted", *, out: Path | None, stream: TextIO) -> int:
    """Write the plan as Markdown, and every contrast as CSV where asked."""
    from fusionbench.api.errors import UserError
    from fusionbench.records.pairs import Results
    from fusionbench.report.power.planning import planned
    from fusionbench.report.power.text import long_rows, page

    if not wanted.effect > 0:
        message = f"--effect must be positive, got {wanted.effect:g}"
        raise UserError(message, "in points, for example 1.0")
    results = Results.open(folder)
    say(results.store.problems)
    plans = planned(results, wanted)
    stream.write(page(plans, wanted, str(folder)))
    if out is not None:
        write_rows(out, long_rows(plans))
    return OK
