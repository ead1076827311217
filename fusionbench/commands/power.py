"""`fusionbench power`: what a study can find, and how many seeds an effect would need."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.commands.app import OK, app
from fusionbench.commands.shared import say, write_rows


@app.command("power")
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    effect: Annotated[float, typer.Option(help="Points that should be found.")] = 1.0,
    pilot: Annotated[bool, typer.Option("--pilot", help="Plan cautiously from few seeds.")] = False,
    baseline: Annotated[str, typer.Option(help="Default: the study's.")] = "",
    methods: Annotated[list[str], typer.Option(help="Default: all.")] = [],  # noqa: B006
    contrasts: Annotated[
        int, typer.Option(min=0, help="Correct for so many; 0: those planned.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write every contrast as CSV, too.")] = None,
) -> None:
    """Minimum detectable effects per task and for the suite, and the seeds an effect needs."""
    from fusionbench.settings import split_names

    names = [name for text in methods for name in split_names(text)]
    raise typer.Exit(
        power(
            folder,
            effect=effect,
            pilot=pilot,
            baseline=baseline,
            methods=names,
            contrasts=contrasts,
            out=out,
            stream=sys.stdout,
        )
    )


def power(
    folder: Path,
    *,
    effect: float,
    pilot: bool,
    baseline: str,
    methods: Sequence[str],
    contrasts: int,
    out: Path | None,
    stream: TextIO,
) -> int:
    """Write the plan as Markdown, and every contrast as CSV where asked."""
    from fusionbench.errors import UserError
    from fusionbench.paired.results import Results
    from fusionbench.power.outlook import Goal
    from fusionbench.power.planning import contrast_count, plan_for, planned
    from fusionbench.power.text import long_rows, page
    from fusionbench.study import QUICK

    if not effect > 0:
        raise UserError(f"--effect must be positive, got {effect:g}", "in points, for example 1.0")
    results = Results.open(folder)
    say(results.store.problems)
    asked = results.planned.study if results.planned else {}
    against = baseline or str(asked.get("baseline", QUICK.baseline))
    pairs = plan_for(results, baseline=against, methods=methods)
    count = contrasts or contrast_count(results, pairs)
    goal = Goal(effect=effect, contrasts=count, pilot=pilot)
    plans = planned(results, pairs, goal)
    stream.write(page(plans, goal, str(folder)))
    if out is not None:
        write_rows(out, long_rows(plans, goal))
    return OK
