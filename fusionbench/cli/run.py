"""`fusionbench run`: what is missing of a study."""

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench import __version__
from fusionbench.api.errors import UserError
from fusionbench.cli.app import (
    FAILED,
    INTERRUPTED,
    OK,
    Plugins,
    Settings,
    Strict,
    app,
    check_encoder,
    found,
    read,
    say,
)
from fusionbench.cli.list_ import Row, columns
from fusionbench.records.cell import RunOptions
from fusionbench.records.history import Run
from fusionbench.records.store import Store
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.selection import select_methods, select_tasks
from fusionbench.study.study import QUICK, Study, as_plain, load_study, preset, with_overrides

# The end of a run: its request noted, its report written, its table and gaps shown.


if TYPE_CHECKING:
    from collections.abc import Callable

    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.report.build import ReportPaths


def note_run(study: Study, options: RunOptions, catalog: Catalog) -> None:
    """Write into `study.json` what was asked for, so that a report can tell what is missing."""
    methods = select_methods(catalog, study.methods, study.settings)
    tasks, unavailable = select_tasks(catalog, study.tasks)
    run = Run(
        study=as_plain(study),
        labels=tuple(chosen.label for chosen in methods),
        tasks=tuple(card.name for card in tasks),
        unavailable={one.card.name: one.reason for one in unavailable},
        version=__version__,
    )
    Store.open(options.out).history.add(run)


def close(folder: Path, result: "SweepResult", stream: TextIO) -> None:
    """Bring the report up to date and show the table, what is missing and where the report lies."""
    home = folder / "report"
    _update(folder, home)
    if (home / "tables" / "summary.csv").exists():
        stream.write(f"\n{table_text(home / 'tables' / 'summary.csv')}\n\n")
    skipped = home / "tables" / "gaps.md"
    if skipped.exists():
        stream.write(skipped.read_text(encoding="utf-8"))
    for one in result.unavailable:
        stream.write(f"- left out: {one.card.name}: {one.reason}\n")
    counts = f"{result.executed} cells run, {result.finished} were there"
    failed = f", {result.failed} failed (see {folder / 'failures'})" if result.failed else ""
    stream.write(f"{counts}{failed}\n")
    # A run that was interrupted early leaves nothing to report.
    for page in (home / "report.html", home / "report.md"):
        if page.exists():
            stream.write(f"report: {page}\n")
            break


def table_text(file: Path) -> str:
    """The summary table for a terminal: methods, their means over the suite and its groups."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    conditions = list(dict.fromkeys((row["encoder"], row["steps"]) for row in rows))
    parts = []
    for encoder, steps in conditions:
        here = [row for row in rows if (row["encoder"], row["steps"]) == (encoder, steps)]
        parts.append(f"{encoder}, {steps} steps; mean ± 95 % interval over runs, in percent\n"
                     f"{_pivot(here)}")  # fmt: skip
    return "\n\n".join(parts)


def _pivot(rows: list[dict[str, str]]) -> str:
    titles = list(dict.fromkeys((row["aggregate"], row["n_tasks"]) for row in rows))
    header: Row = ("method", *(f"{name} ({tasks})" for name, tasks in titles), "parameters")
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[row["aggregate"]] = row["text"]
        cells[row["method"]]["parameters"] = row["fusion"]
    return columns(
        [
            header,
            *(
                (method, *(found.get(name, "-") for name, _ in titles), found["parameters"])
                for method, found in cells.items()
            ),
        ]
    )


def report_writer() -> "Callable[..., ReportPaths]":
    """`write_report`; UserError if this machine lacks a package that only reports need."""
    try:
        from fusionbench.report.build import write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"the report needs the package {error.name}, which is not installed",
            f"pip install {error.name}, then `fusionbench report DIR`; the records are safe",
        ) from error
    return write_report


def _update(folder: Path, home: Path) -> None:
    from fusionbench.report.build import up_to_date

    store = Store.open(folder)
    if up_to_date(store, home) or not (store.finished() or any(store.failures())):
        return
    report_writer()(folder, home)


@app.command("run")
def command(
    study: Annotated[Path | None, typer.Argument(help="A study as a YAML file.")] = None,
    methods: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "",
    seeds: Annotated[int | None, typer.Option(help="How many runs of each cell.")] = None,
    preset: Annotated[str, typer.Option(help="quick, paper or smoke.")] = "",
    settings: Settings = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder of the results.")] = "results/local",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: Annotated[float, typer.Option(min=0.0, help="GiB for hidden states.")] = 20.0,
    compile: Annotated[
        str, typer.Option(help="auto, off, on: frozen blocks; replay; steps; graphs.")
    ] = "auto",
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Run what is missing of a study; a second run finds nothing to do."""
    flags = {"methods": methods, "tasks": tasks, "settings": settings}
    chosen = assemble(study, preset, encoder=encoder, seeds=seeds, **flags)
    if strict_plugins:
        read(plugin, strict=True)
    options = RunOptions(
        out=out,
        device=checked_device(device),
        workers=workers,
        plugins=tuple(plugin),
        cache_gib=limit_cache,
        quiet=quiet,
        compile=checked_compile(compile),
        checkpoint=checkpoint,
    )
    action = show_plan if dry_run else run
    raise typer.Exit(action(chosen, options, sys.stdout))


def assemble(
    file: Path | None,
    preset_name: str,
    *,
    methods: Sequence[str],
    tasks: Sequence[str],
    encoder: str,
    seeds: int | None,
    settings: Sequence[str],
) -> Study:
    """The study meant by a file or a preset and the flags. Raises UserError."""
    if file is not None and preset_name:
        raise UserError("a study file and --preset exclude each other", "write preset: in the file")
    start = load_study(file) if file is not None else preset(preset_name or QUICK.name)
    return with_overrides(
        start, methods=methods, tasks=tasks, encoder=encoder, seeds=seeds, settings=settings
    )


def checked_device(name: str) -> str:
    """The device as written. Raises UserError for anything but auto, cpu, cuda and cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"no device {name!r}", "known: auto, cpu, cuda, cuda:N")
    return name


COMPILE = ("auto", "on", "off", "replay", "steps", "graphs")


def checked_compile(text: str) -> str:
    """As written. Raises UserError for anything but auto, on, off, steps and graphs."""
    if text not in COMPILE:
        raise UserError(f"--compile {text!r} is no choice", f"known: {', '.join(COMPILE)}")
    return text


def run(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Run what is missing, report, and say what was left out."""
    catalog = read(options.plugins)
    check_encoder(catalog, study.encoder, study.budget.image_size)
    from fusionbench.registry.selection import select_methods, select_tasks
    from fusionbench.study.contrasts import check_known, read_contrasts

    # Names and settings are checked before a folder is made.
    chosen = select_methods(catalog, study.methods, study.settings)
    select_tasks(catalog, study.tasks)
    planned = read_contrasts(study.contrasts, study.baseline)
    check_known(planned, {one.label for one in chosen} | set(catalog.methods))
    from fusionbench.launchers.progress import make_progress
    from fusionbench.launchers.sweep import run_study
    from fusionbench.records.store import Store

    result = run_study(study, options, catalog, make_progress(quiet=options.quiet))
    note_run(study, options, catalog)
    say(found(Store.open(options.out)))
    close(Path(options.out), result, stream)
    if result.interrupted:
        stream.write("interrupted: the same command goes on where this one stopped\n")
        return INTERRUPTED
    return FAILED if result.failed else OK


def show_plan(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Say what `run` would do; no result is written."""
    catalog = read(options.plugins)
    check_encoder(catalog, study.encoder, study.budget.image_size)
    from fusionbench.cli.forecast import forecast
    from fusionbench.records.store import Store
    from fusionbench.study.plan import make_plan

    store = Store.open(options.out) if Path(options.out).exists() else None
    plan = make_plan(study, catalog, store.finished() if store else {})
    say(store.problems if store else ())
    stream.write(forecast(plan, options, store))
    return OK
