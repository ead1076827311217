"""`fusionbench run`: run the cells of a study that have no record."""

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

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
    note,
    read,
    say,
    seldom,
)
from fusionbench.records.cell import RunOptions
from fusionbench.records.files import require_cache
from fusionbench.study.folders import with_folders
from fusionbench.study.reading import load_study, with_overrides
from fusionbench.study.study import PROBE, QUICK, SMOKE, Study, preset

if TYPE_CHECKING:
    from fusionbench.launchers.jobs import Launcher
    from fusionbench.launchers.slurm import SlurmOptions
    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.records.store import Store
    from fusionbench.study.parts import Part
    from fusionbench.study.plan import Plan, ResolvedStudy

LOCAL, SLURM = "local", "slurm"
WEIGHTS_HELP = "Split the weights of one vlm training over its processes in the last stage."
Sbatch = Annotated[
    list[str],
    typer.Option(metavar="KEY=VALUE", help="More for the cluster: account=NAME, gres=gpu:1."),
]
Again = Annotated[
    bool, typer.Option("--again", help="Run the cells of edited plug-ins again; keep the old ones.")
]
COMPILE = ("auto", "off", "blocks", "steps")
COMPILE_HELP = "auto, off, blocks (frozen blocks) or steps (whole steps too)."


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError(f"a limit must be a finite number, got {value}", "leave it out")
    return value


def limit(text: str) -> Any:
    """An option that takes a finite number, 0 or larger. Raises UserError for NaN and infinity."""
    return typer.Option(min=0.0, help=text, callback=_finite)


LimitCache = Annotated[float, limit("GiB for hidden states.")]
CACHE_GIB = RunOptions().cache_gib
"""Its default."""


@app.command("run", help="Run the missing cells of a study; a second run has nothing to do.")
def command(
    study: Annotated[Path | None, typer.Argument(help="A study as a YAML file.")] = None,
    methods: Annotated[list[str], typer.Option(help="all, names, globs.")] = [],  # noqa: B006
    tasks: Annotated[list[str], typer.Option(help="all, names, globs, folder:DIR.")] = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "",
    track: Annotated[str, typer.Option(help="probe, or vlm: inside a language model.")] = "",
    language: Annotated[str, typer.Option(help="words, smollm2-135m or hf:<id or folder>.")] = "",
    model: Annotated[str, typer.Option(help="llava:<id or folder>, taken apart.")] = "",
    mixture: Annotated[list[str], typer.Option(help="What vlm trains on: tasks, FILE.json.")] = [],  # noqa: B006
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files and images.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="Processes of one vlm training.")] = 0,
    micro_batch: Annotated[int, typer.Option(min=0, help="Rows a process trains at a time.")] = 0,
    shard_weights: Annotated[bool, typer.Option("--shard-weights", help=WEIGHTS_HELP)] = False,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Run part I of N parts only.")] = "",
    cell: Annotated[str, typer.Option(help="Run the cell of this id only.")] = "",
    launcher: Annotated[str, typer.Option(help="local, or slurm: on a cluster.")] = LOCAL,
    partition: Annotated[str, typer.Option(help="Of the cluster; default: its own.")] = "",
    time: Annotated[int, typer.Option(min=2, help="Minutes of one task of the cluster.")] = 60,
    sbatch: Sbatch = [],  # noqa: B006
    seeds: Annotated[int | None, typer.Option(help="How many runs of each cell.")] = None,
    preset: Annotated[str, typer.Option(help="quick, paper, smoke; of a file: smoke.")] = "",
    settings: Settings = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder of the results.")] = "results/local",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: LimitCache = CACHE_GIB,
    limit_cell: Annotated[float, limit("Seconds until a cell is ended; 0: by forecast.")] = 0.0,
    compile: Annotated[str, typer.Option(help=COMPILE_HELP)] = "auto",
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print every method or row.")] = False,
    again: Again = False,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    names: Any = {"methods": methods, "tasks": tasks, "settings": settings, "mixture": mixture}
    vlm = {"track": track, "language": language, "model": model}
    chosen = assemble(study, preset, encoder=encoder, seeds=seeds, **names, **vlm)
    options = RunOptions(
        out=out, device=device, workers=workers, plugins=tuple(plugin), shard=shard_weights,
        cache_gib=limit_cache, cell_seconds=limit_cell, compile=compile, checkpoint=checkpoint,
        quiet=quiet, data_root=data_root, processes=processes, micro_batch=micro_batch)  # fmt: skip
    how = how_of(shard, cell, cluster(launcher, partition, time, sbatch), full=full, again=again)
    raise typer.Exit(start(chosen, options, how, dry_run=dry_run, strict=strict_plugins))


@dataclass(frozen=True, kw_only=True)
class How:
    """What of a study runs, where, and what is said of it."""

    part: "Part | None" = None
    """The part of its plan; None: all of it."""
    queue: "SlurmOptions | None" = None
    """What is asked of a cluster; None: it runs on this machine."""
    note: bool = True
    """Whether the request is noted in the folder; False for one that stands there already."""
    full: bool = False
    """Whether every method is printed."""
    again: bool = False
    """Whether cells of plug-ins that were edited since run again; else they stop the run."""


def how_of(
    shard: str, cell: str, queue: "SlurmOptions | None", *, full: bool, again: bool = False
) -> How:
    """What the flags of a run say. Raises UserError."""
    from fusionbench.study.parts import one_cell, parse_shard

    if shard and cell:
        raise UserError("--shard and --cell exclude each other", "a cell is one part of its own")
    part = partial(one_cell, name=cell) if cell else parse_shard(shard).of if shard else None
    return How(part=part, queue=queue, full=full, again=again)


def start(study: Study, options: RunOptions, how: How, *, dry_run: bool, strict: bool) -> int:
    """Run a study, or print what would run; the exit status. Raises UserError."""
    checked_device(options.device)
    checked_compile(options.compile)
    if not options.out.strip():
        raise UserError("--out is empty", "name a folder, for example results/local")
    if study.track == PROBE and options.processes > 1:
        raise UserError("--processes is for the track vlm", "--workers trains cells at once")
    study, plugged = with_folders(study, options.plugins, hear=note)
    options = replace(options, plugins=plugged)
    if strict:
        read(options.plugins, strict=True)
    if dry_run:
        return show_plan(study, options, sys.stdout, how.part, full=how.full)
    return run(study, options, sys.stdout, how)


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
        from fusionbench.study.training import smoke_of

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


def cluster(
    launcher: str, partition: str, minutes: int, sbatch: Sequence[str]
) -> "SlurmOptions | None":
    """What is asked of a cluster; None for this machine. Raises UserError."""
    if launcher not in (LOCAL, SLURM):
        raise unknown("launcher", launcher, (LOCAL, SLURM))
    if launcher == LOCAL:
        if partition or sbatch:
            raise UserError("--partition and --sbatch are for a cluster", "add --launcher slurm")
        return None
    from fusionbench.launchers.slurm import SlurmOptions

    pairs = dict(text.partition("=")[::2] for text in sbatch)
    return SlurmOptions(partition=partition, minutes=minutes, more=pairs)


_ALL = How()


def run(study: Study, options: RunOptions, stream: TextIO, how: How = _ALL) -> int:
    """Run the missing cells, write the report, and print the run summary; the exit status."""
    catalog = read(options.plugins)
    from fusionbench.cli import summary
    from fusionbench.study.plan import resolve

    require_cache()
    # Names and settings are checked before a folder is made.
    resolved = resolve(study, catalog, download=True, hear=note, data_root=options.data_root)
    launcher: Launcher | None = None
    if how.queue is not None:
        from fusionbench.launchers.slurm import SlurmLauncher

        launcher = SlurmLauncher(options, how.queue, study)
    elif launched(options):
        from fusionbench.launchers.world import lead_or_follow

        launcher = lead_or_follow(options)
        if launcher is None:
            return OK
    plan, result = execute(
        resolved, options, launcher, part=how.part, note=how.note, again=how.again
    )
    if result.failed and not result.interrupted:
        explain(plan)
    tell = (lambda _: None) if options.quiet else note
    ids = {cell.spec.id for cell in plan.cells}
    try:
        summary.write(
            Path(options.out), plan.resolved, result, stream, full=how.full, hear=tell, cells=ids
        )
    except KeyboardInterrupt:
        # The cells are recorded: the same command writes their report.
        result.interrupted = True
    return exit_status(plan, result, stream)


def explain(plan: "Plan") -> None:
    """Say what is wrong with the plug-in methods of a run with failed cells: line and mend."""
    from fusionbench.cli.doctor import first_faults
    from fusionbench.registry.discovery import BUILT_IN

    cards = [chosen.card for chosen in plan.resolved.methods]
    for file in dict.fromkeys(card.file for card in cards if card.source != BUILT_IN):
        for fault in first_faults(file):
            note(fault)


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
    *,
    part: "Part | None" = None,
    note: bool = True,
    again: bool = False,
    begun: "Callable[[Plan], None] | None" = None,
) -> "tuple[Plan, SweepResult]":
    """Note the request in `study.json` and run its missing cells, or those of a part of it.

    `begun` is called with the plan before its first cell runs. Raises UserError if the folder has
    records of a plug-in that was edited since; with `again` they are set aside and run again.
    """
    from fusionbench.cli.summary import note_request
    from fusionbench.launchers.local import LocalLauncher
    from fusionbench.launchers.progress import make_progress
    from fusionbench.launchers.sweep import run_plan
    from fusionbench.records.store import Store
    from fusionbench.study.plan import make_plan

    store = Store.create(options.out)
    _settle_edited(resolved, store, again=again)
    hear = seldom(quiet=options.quiet)
    plan = make_plan(resolved, store.finished(), keep=True, hear=hear)
    plan = part(plan) if part else plan
    # Before the first cell: a report of a run that was killed knows what is missing.
    if note:
        note_request(store, plan)
    if begun:
        begun(plan)
    chosen = launcher or LocalLauncher(options)
    result = run_plan(plan, chosen, make_progress(quiet=options.quiet))
    _count_missing(plan, result, options)
    return plan, result


def _settle_edited(resolved: "ResolvedStudy", store: "Store", *, again: bool) -> None:
    """Set records of edited plug-ins aside. Raises UserError without `again`."""
    from fusionbench.study.again import edited, refuse, supersede

    found = edited(resolved, store)
    if not again:
        refuse(found, store.folder)
    elif found:
        count = supersede(found, store)
        sys.stderr.write(f"note: {count} records moved to {store.folder / 'superseded'}\n")


def _count_missing(plan: "Plan", result: "SweepResult", options: RunOptions) -> None:
    """Count as failed the cells that were run and are not on disk: somebody removed them."""
    from fusionbench.records.store import Store

    if result.interrupted or not result.executed:
        return
    there = Store.open(options.out).finished()
    missing = sum(cell.spec.id not in there for cell in plan.pending)
    if (gone := missing - result.failed) > 0:
        result.executed, result.failed = result.executed - gone, missing
        sys.stderr.write(f"note: {gone} cells were run and have no record in {options.out}\n")


def exit_status(plan: "Plan", result: "SweepResult", stream: TextIO) -> int:
    """The exit status of a run; an interrupted one says how to go on.

    A run without a cell, or without a task that was asked for, is no success.
    """
    if result.interrupted:
        stream.write("interrupted: the same command resumes the run\n")
        return INTERRUPTED
    return FAILED if result.failed or plan.lost or not plan.cells else OK


def show_plan(
    study: Study,
    options: RunOptions,
    stream: TextIO,
    part: "Part | None" = None,
    *,
    full: bool = False,
) -> int:
    """Print what `run` would do, with `full` every method on every task; no result is written."""
    catalog = read(options.plugins)
    from fusionbench.cli.forecast import forecast
    from fusionbench.records.store import Store
    from fusionbench.study.again import described, edited
    from fusionbench.study.plan import make_plan, resolve

    resolved = resolve(study, catalog, data_root=options.data_root, absent=True)
    store = Store.open(options.out) if Path(options.out).exists() else None
    for line in described(edited(resolved, store), store.folder) if store else ():
        sys.stderr.write(f"note: {line}\n")
    finished = store.finished() if store else {}
    say(store.problems if store else ())
    records = store.records(finished) if store else ()
    plan = make_plan(resolved, finished, hear=seldom(quiet=options.quiet))
    plan = part(plan) if part else plan
    stream.write(forecast(plan, options, records, full=full))
    return OK if plan.cells and not plan.lost else FAILED
