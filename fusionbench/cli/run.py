"""`fusionbench run`: what is missing of a study."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

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
from fusionbench.records.cell import RunOptions
from fusionbench.study.study import QUICK, Study, load_study, preset, with_overrides


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
    from fusionbench.cli import summary
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
    summary.note_run(study, options, catalog)
    say(found(Store.open(options.out)))
    summary.close(Path(options.out), result, stream)
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
