"""`fusionbench ablate`: a method taken apart, one change at a time or in combinations."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import Plugins, Settings, Strict, app, note, read, say
from fusionbench.cli.run import CACHE_GIB, Again, LimitCache, assemble, checked_device, limit
from fusionbench.records.cell import RunOptions
from fusionbench.records.text import checkpoint_name
from fusionbench.study.folders import with_folders
from fusionbench.study.study import Study

if TYPE_CHECKING:
    from fusionbench.records.history import Design, PlannedAblation
    from fusionbench.registry.catalog import Catalog
    from fusionbench.study.plan import Plan

# One task of each skill that `nano` reads, and the planted one that only feedback can solve.
TASKS = ("scenes_tiny_color", "scenes_count", "planted_feedback")
SEEDS = 4
"""The fewest that a test is printed for; docs/ablations.md has what this costs."""
StudyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Encoder, tasks, seeds, budget of a study.")
]
Tasks = Annotated[
    list[str], typer.Option(help=f"all, names, globs. Without a study: {', '.join(TASKS)}.")
]
Seeds = Annotated[
    int | None, typer.Option(help=f"How many runs of each cell. Without a study: {SEEDS}.")
]


@app.command("ablate")
def command(
    method: Annotated[str, typer.Argument(help="A method, or name[key=value].")],
    factorial: Annotated[
        str, typer.Option(metavar="SWITCHES", help="Combine these: memory,feedback,query=false.")
    ] = "",
    only: Annotated[str, typer.Option(metavar="SWITCHES", help="Change only these.")] = "",
    study: StudyFile = None,
    tasks: Tasks = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "",
    seeds: Seeds = None,
    preset: Annotated[str, typer.Option(help="quick, paper, smoke; of a study: smoke.")] = "",
    settings: Settings = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Default: results/ablate-METHOD.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: LimitCache = CACHE_GIB,
    limit_cell: Annotated[float, limit("Seconds until a cell is ended; 0: by forecast.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    again: Again = False,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Switch the parts of a method off, and say what each is worth; a second run adds nothing."""
    if factorial and only:
        raise UserError("--factorial and --only exclude each other", "name the switches once")
    ours = start(study, preset, tasks=tasks, encoder=encoder, seeds=seeds, settings=settings)
    ours, plugged = with_folders(ours, plugin, hear=note)
    catalog = read(plugged, strict=strict_plugins)
    design = designed(catalog, method, ours, factorial=factorial, only=only)
    family = method.partition("[")[0]
    options = RunOptions(
        out=out or f"results/ablate-{family}",
        device=checked_device(device),
        workers=workers,
        plugins=plugged,
        quiet=quiet,
        cache_gib=limit_cache,
        cell_seconds=limit_cell,
    )
    if dry_run:
        raise typer.Exit(show_plan(ours, design, options))
    raise typer.Exit(run(ours, design, options, catalog, again=again))


def start(
    file: Path | None,
    preset: str,
    *,
    tasks: Sequence[str],
    encoder: str,
    seeds: int | None,
    settings: Sequence[str],
) -> Study:
    """A study file or a preset, with what the command line says instead."""
    if file is None:
        tasks, seeds = tasks or TASKS, SEEDS if seeds is None else seeds
    return assemble(
        file, preset, methods=(), tasks=_split(tasks), encoder=encoder, seeds=seeds,
        settings=settings,
    )  # fmt: skip


def designed(
    catalog: "Catalog", method: str, study: Study, *, factorial: str, only: str
) -> "Design":
    """The variants: one change at a time, or the combinations of some switches."""
    from fusionbench.study import ablation

    base = ablation.base_of(catalog, method, study.settings)
    if factorial:
        return ablation.factorial(catalog, base, _split([factorial]))
    return ablation.one_factor_out(catalog, base, _split([only]))


def run(
    study: Study,
    design: "Design",
    options: RunOptions,
    catalog: "Catalog",
    *,
    again: bool = False,
) -> int:
    """Run the missing cells, write the tables, and print them; the exit status."""
    from fusionbench.cli.run import execute, exit_status
    from fusionbench.cli.summary import report_writer
    from fusionbench.records.folder import exclusive
    from fusionbench.records.history import note_design
    from fusionbench.study.plan import resolve

    folder = Path(options.out)

    def begun(plan: "Plan") -> None:
        with exclusive(folder):
            say(note_design(folder, planned_cells(plan, design)))

    resolved = resolve(of_design(study, design), catalog, download=True, hear=note)
    plan, result = execute(resolved, options, again=again, begun=begun)
    if result.interrupted:
        # There may be no record to report; `resume` writes the tables.
        return exit_status(plan, result, sys.stdout)
    with exclusive(folder):
        paths = report_writer()(folder, hear=say)
    table = paths.tables / "ablation.md"
    if table.exists():
        sys.stdout.write(table.read_text(encoding="utf-8"))
    sys.stdout.write(
        f"\ntables: {paths.tables}/ablation.{{md,csv,tex}}, report: {paths.page}\n"
        f"{result.executed} cells run, {result.finished} were there, {result.failed} failed\n"
    )
    return exit_status(plan, result, sys.stdout)


def show_plan(study: Study, design: "Design", options: RunOptions) -> int:
    """Print what would run."""
    from fusionbench.cli.run import show_plan

    return show_plan(of_design(study, design), options, sys.stdout)


def of_design(study: Study, design: "Design") -> Study:
    """The study whose methods are the variants; their labels hold the changed settings."""
    kind = "factorial" if design.kind == "factorial" else "one change at a time"
    return replace(
        study,
        name=f"ablation of {design.method}",
        methods=tuple(variant.label for variant in design.variants),
        settings={},
        note=f"{kind}; the rest of this report shows the same cells as methods of their own",
    )


def planned_cells(plan: "Plan", design: "Design") -> "PlannedAblation":
    """The design with the ids of its cells."""
    from fusionbench.records.history import PlannedAblation

    cells: dict[str, dict[str, tuple[str, ...]]] = {}
    for cell in plan.cells:
        tasks = cells.setdefault(cell.chosen.label, {})
        tasks[cell.task.name] = (*tasks.get(cell.task.name, ()), cell.spec.id)
    study = plan.resolved.study
    budget = study.budget
    encoder = checkpoint_name(study.encoder)
    words = f"{encoder}, {budget.steps} steps of {budget.batch}, {study.seeds} seeds"
    return PlannedAblation(design=design, encoder=encoder, budget=words, cells=cells)


def _split(texts: Sequence[str]) -> list[str]:
    from fusionbench.registry.selection import split_names

    return [name for text in texts for name in split_names(text)]
