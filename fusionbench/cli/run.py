"""`fusionbench run`: run the cells of a study that have no record."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import UserError, unknown
from fusionbench.cli.app import (
    FAILED,
    INTERRUPTED,
    OK,
    Plugins,
    Settings,
    Strict,
    app,
    read,
    say,
)
from fusionbench.records.cell import RunOptions
from fusionbench.study.study import (
    PROBE,
    QUICK,
    SMOKE,
    Study,
    load_study,
    preset,
    smoke_of,
    with_overrides,
)

if TYPE_CHECKING:
    from fusionbench.launchers.jobs import Launcher
    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.study.plan import Plan, ResolvedStudy

COMPILE = ("auto", "off", "blocks", "steps")
COMPILE_HELP = "auto, off, blocks (frozen blocks) or steps (whole steps too)."


@app.command("run")
def command(
    study: Annotated[Path | None, typer.Argument(help="A study as a YAML file.")] = None,
    methods: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "",
    track: Annotated[str, typer.Option(help="probe, or vlm: inside a language model.")] = "",
    language: Annotated[str, typer.Option(help="words, smollm2-135m or hf:<id or folder>.")] = "",
    model: Annotated[str, typer.Option(help="llava:<id or folder>, taken apart.")] = "",
    mixture: Annotated[list[str], typer.Option(help="What vlm trains on: tasks, FILE.json.")] = [],  # noqa: B006
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files and images.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="Processes of one vlm training.")] = 0,
    micro_batch: Annotated[int, typer.Option(min=0, help="Rows a process trains at a time.")] = 0,
    shard: Annotated[bool, typer.Option("--shard", help="Split weights over processes.")] = False,
    seeds: Annotated[int | None, typer.Option(help="How many runs of each cell.")] = None,
    preset: Annotated[str, typer.Option(help="quick, paper, smoke; of a file: smoke.")] = "",
    settings: Settings = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder of the results.")] = "results/local",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: Annotated[float, typer.Option(min=0.0, help="GiB for hidden states.")] = 20.0,
    compile: Annotated[str, typer.Option(help=COMPILE_HELP)] = "auto",
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Run the missing cells of a study; a second run has nothing to do."""
    flags = {"methods": methods, "tasks": tasks, "settings": settings, "mixture": mixture}
    chosen = assemble(
        study, preset, encoder=encoder, seeds=seeds, track=track, language=language, model=model,
        **flags,
    )  # fmt: skip
    if strict_plugins:
        read(plugin, strict=True)
    options = RunOptions(
        out=out, device=checked_device(device), workers=workers, plugins=tuple(plugin),
        cache_gib=limit_cache, quiet=quiet, compile=checked_compile(compile),
        checkpoint=checkpoint, data_root=data_root, processes=processes,
        micro_batch=micro_batch, shard=shard,
    )  # fmt: skip
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
    track: str = "",
    language: str = "",
    model: str = "",
    mixture: Sequence[str] = (),
) -> Study:
    """The study of a file or a preset, with the flags' changes. Raises UserError."""
    if file is not None and preset_name not in ("", SMOKE.name):
        raise UserError(
            "a study file and --preset exclude each other, but for --preset smoke",
            "write preset: in the file",
        )
    start = (
        load_study(file) if file is not None else preset(preset_name or QUICK.name, track or PROBE)
    )
    if file is not None and preset_name:
        start = smoke_of(start)
    if file is not None and track and track != start.track:
        raise UserError(
            f"{file} is a study of the track {start.track}, and --track says {track}",
            "write track: in the file",
        )
    return with_overrides(
        start, methods=methods, tasks=tasks, encoder=encoder, seeds=seeds, settings=settings,
        language=language, model=model, mixture=mixture,
    )  # fmt: skip


def checked_device(name: str) -> str:
    """The device as written. Raises UserError for anything but auto, cpu, cuda and cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"no device {name!r}", "known: auto, cpu, cuda, cuda:N")
    return name


def checked_compile(text: str) -> str:
    """The mode as written. Raises UserError for anything but auto, off, blocks and steps."""
    if text not in COMPILE:
        raise unknown("--compile", text, COMPILE)
    return text


def run(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Run the missing cells, write the report, and print the run summary; the exit status."""
    catalog = read(options.plugins)
    from fusionbench.cli import summary
    from fusionbench.study.plan import resolve

    # Names and settings are checked before a folder is made.
    resolved = resolve(study, catalog, download=True, data_root=options.data_root)
    if launched(options):
        from fusionbench.launchers.world import lead_or_follow

        launcher = lead_or_follow(options)
        if launcher is None:
            return OK
        _, result = execute(resolved, options, launcher)
    else:
        _, result = execute(resolved, options)
    summary.write(Path(options.out), resolved, result, stream)
    return exit_status(result, stream)


_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched(options: RunOptions) -> bool:
    """Whether torchrun or `accelerate launch` started this process.

    Raises UserError for a launcher that says nothing of its number of processes: it may have
    started one alone.
    """
    if not any(name in os.environ for name in _LAUNCHER):
        return False
    if not options.processes and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "a launcher started this process but says nothing of WORLD_SIZE",
            "name the number of processes that it starts (--processes N), or do not use it",
        )
    return True


def execute(
    resolved: "ResolvedStudy",
    options: RunOptions,
    launcher: "Launcher | None" = None,
    note: "Callable[[Plan], None] | None" = None,
) -> "tuple[Plan, SweepResult]":
    """Note the request in `study.json` and run the missing cells of a study on this machine.

    The request comes first: a report of a run that was killed knows what is missing. `note` is
    called with the plan before the first cell.
    """
    from fusionbench.cli.summary import note_request
    from fusionbench.launchers.local import LocalLauncher
    from fusionbench.launchers.progress import make_progress
    from fusionbench.launchers.sweep import run_plan
    from fusionbench.records.store import Store
    from fusionbench.study.plan import make_plan

    store = Store.create(options.out)
    plan = make_plan(resolved, store.finished(), keep=True)
    note_request(store, resolved)
    if note is not None:
        note(plan)
    chosen = launcher or LocalLauncher(options)
    return plan, run_plan(plan, chosen, make_progress(quiet=options.quiet))


def exit_status(result: "SweepResult", stream: TextIO) -> int:
    """The exit status of a run; an interrupted one says how to go on."""
    if result.interrupted:
        stream.write("interrupted: the same command resumes the run\n")
        return INTERRUPTED
    return FAILED if result.failed else OK


def show_plan(study: Study, options: RunOptions, stream: TextIO) -> int:
    """Print what `run` would do; no result is written."""
    catalog = read(options.plugins)
    from fusionbench.cli.forecast import forecast
    from fusionbench.records.store import Store
    from fusionbench.study.plan import make_plan, resolve

    resolved = resolve(study, catalog, data_root=options.data_root)
    store = Store.open(options.out) if Path(options.out).exists() else None
    finished = store.finished() if store else {}
    say(store.problems if store else ())
    records = store.records(finished) if store else ()
    stream.write(forecast(make_plan(resolved, finished), options, records))
    return OK
