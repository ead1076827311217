"""`fusionbench check`: conformance checks of methods, and a look at the data of tasks."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import disk_error
from fusionbench.cli.app import FAILED, OK, Plugins, app

if TYPE_CHECKING:
    from fusionbench.registry.cards import TaskCard


@app.command("check")
def command(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET...", help="Names, globs, files, folder:DIR, or all."),
    ],
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page.")] = None,
    only: Annotated[list[str], typer.Option(help="This check only; may be repeated.")] = [],  # noqa: B006
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "aot_eager",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Run the conformance checks on methods and load tasks; exit code 1 on a fault."""
    code = check(targets, out=out, only=only, compiler=compiler, plugins=plugin, stream=sys.stdout)
    raise typer.Exit(code)


def check(
    targets: Sequence[str],
    *,
    out: Path | None,
    only: Sequence[str],
    compiler: str,
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Print the counts of outcomes per method; write details to `out`. Returns the exit code."""
    import torch

    from fusionbench.checks.first_build import first_fault
    from fusionbench.checks.kit import counts_text, total
    from fusionbench.checks.run import find, page, run_checks
    from fusionbench.checks.task_data import tasks_of

    # One thread: sums in the same order on every machine.
    torch.set_num_threads(1)
    tasks = {target: tasks_of(target, plugins) for target in targets}
    found = {
        subject.name: replace(subject, compiler=compiler)
        for target in targets
        if not tasks[target] or Path(target).exists()
        for subject in find(target, plugins=plugins, required=not tasks[target])
    }
    cards = {card.name: card for some in tasks.values() for card in some}
    reports, faults = [], _check_tasks(cards.values(), stream)
    for subject in found.values():
        if not only and (fault := first_fault(subject)):
            faults += 1
            stream.write(f"{subject.name}: cannot be used\n  {fault}\n")
            continue
        reports.append(run_checks(subject, only=only))
        stream.write(f"{reports[-1]}\n")
        stream.flush()
    seconds = sum(record.seconds for report in reports for record in report.records)
    if reports:
        counts = counts_text(total(reports))
        stream.write(f"{len(reports)} methods, {seconds:.0f} s of CPU: {counts}\n")
    if out is not None:
        _write(out, page(reports))
        stream.write(f"{out}\n")
    return FAILED if faults or any(report.unexpected for report in reports) else OK


def _check_tasks(cards: "Iterable[TaskCard]", stream: TextIO) -> int:
    """Load each task and print what it holds; how many have a fault."""
    from fusionbench.checks.task_data import check_task

    faults = 0
    for card in cards:
        seen = check_task(card)
        faults += bool(seen.faults)
        stream.write(f"{seen}\n")
    return faults


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, out) from error
