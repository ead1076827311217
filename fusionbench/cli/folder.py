"""`fusionbench status`, `resume` and `merge`: what folders of results hold, and the rest of it."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import INTERRUPTED, OK, Plugins, app, say
from fusionbench.cli.run import (
    CACHE_GIB,
    LOCAL,
    Again,
    LimitCache,
    Sbatch,
    checked_device,
    cluster,
)
from fusionbench.records.cell import RunOptions

if TYPE_CHECKING:
    from fusionbench.launchers.slurm import SlurmOptions
    from fusionbench.records.states import CellState, RequestState
    from fusionbench.study.parts import Part
    from fusionbench.study.plan import Plan

Results = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")]
_LISTED = 20


@app.command("status")
def status_command(
    folder: Results,
    everything: Annotated[bool, typer.Option("--all", help="Name every cell.")] = False,
) -> None:
    """Count the cells of a folder that are done, running, failed, lost and left."""
    raise typer.Exit(status(folder, everything=everything, stream=sys.stdout))


def status(folder: Path, *, everything: bool, stream: TextIO) -> int:
    """Print counts by method and task, and the cells without a record; nothing is written."""
    from fusionbench.records.states import STATES, states, superseded
    from fusionbench.records.store import Store

    store = Store.open(folder)
    found = states(store)
    say(store.problems)
    if not found:
        stream.write(f"{len(store.finished())} cells; no request: `fusionbench run` notes one\n")
    for one in found:
        counts = Counter(cell.state for cell in one.cells)
        words = ", ".join(f"{counts[state]} {state}" for state in STATES)
        if diverged := sum(cell.diverged for cell in one.cells):
            words += f"; {diverged} of the done ones diverged and have no score"
        stream.write(f"{one.request.study.get('name', '')}: {len(one.cells)} cells: {words}\n")
        if counts["done"] < len(one.cells) or everything:
            stream.write(_table(one.cells))
            stream.write(_names(one.cells, everything=everything))
    if old := superseded(store):
        named = ", ".join(f"{count} of {name}" for name, count in sorted(old.items()))
        stream.write(
            f"superseded: {named} (made before a plug-in was edited; no table reads them)\n"
        )
    stream.write(_tasks_of_cluster(folder))
    return OK


def _table(cells: Sequence["CellState"]) -> str:
    """Counts by method, and by task, where some cell is not done."""
    from fusionbench.cli.listing import columns
    from fusionbench.records.states import STATES

    lines = []
    for part, name in ((0, "method"), (1, "task")):
        counts: dict[str, Counter[str]] = {}
        for cell in cells:
            counts.setdefault(str(cell.place[part]), Counter())[cell.state] += 1
        rows = [
            (key, *(str(one[state] or "-") for state in STATES))
            for key, one in sorted(counts.items())
            if one["done"] < one.total()
        ]
        lines.append(columns([(name, *STATES), *rows]) if rows else "")
    return "\n\n".join(line for line in lines if line) + "\n\n"


def _names(cells: Iterable["CellState"], *, everything: bool) -> str:
    """A line for each cell that is not done and for which more than its place is known."""
    shown = [cell for cell in cells if everything or cell.why]
    most = len(shown) if everything else _LISTED
    lines = [
        f"{cell.state}: {cell.place[0]} on {cell.place[1]}, seed {cell.place[2]}"
        f"{f' [{cell.id}]' if cell.id else ''}{f': {cell.why}' if cell.why else ''}\n"
        for cell in shown[:most]
    ]
    more = len(shown) - most
    return "".join(lines) + (f"and {more} more (--all)\n" if more > 0 else "")


def _tasks_of_cluster(folder: Path) -> str:
    """A line on the tasks that this folder has in the queue of a cluster, if it ever had any."""
    from fusionbench.launchers.slurm import HOME, active_tasks, job_name

    if not (folder / HOME).is_dir():
        return ""
    queue = active_tasks(job_name(folder))
    if queue is None:
        return "tasks of the cluster: `squeue` gives no answer here\n"
    counts = ", ".join(
        f"{n} {state.lower()}" for state, n in sorted(Counter(queue.values()).items())
    )
    return f"tasks of the cluster: {counts or 'none in the queue'}\n"


@app.command("resume")
def resume_command(
    folder: Results,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    launcher: Annotated[str, typer.Option(help="local, or slurm: on a cluster.")] = LOCAL,
    partition: Annotated[str, typer.Option(help="Of the cluster; default: its own.")] = "",
    time: Annotated[int, typer.Option(min=2, help="Minutes of one task of the cluster.")] = 60,
    sbatch: Sbatch = [],  # noqa: B006
    limit_cache: LimitCache = CACHE_GIB,
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files and images.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    again: Again = False,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Run what the requests of a folder have left."""
    options = RunOptions(
        out=str(folder), device=checked_device(device), workers=workers, quiet=quiet,
        data_root=data_root, plugins=tuple(plugin), cache_gib=limit_cache,
    )  # fmt: skip
    queue = cluster(launcher, partition, time, sbatch)
    raise typer.Exit(resume(folder, options, queue, sys.stdout, again=again))


def resume(
    folder: Path,
    options: RunOptions,
    queue: "SlurmOptions | None",
    stream: TextIO,
    *,
    again: bool = False,
) -> int:
    """Run the missing cells of each request that has any; the worst exit status.

    `again`: the cells of plug-ins that were edited since, too.
    """
    from fusionbench.records.states import states
    from fusionbench.records.store import Store

    store = Store.open(folder)
    found = states(store)
    if not found:
        raise UserError(
            f"{folder} holds no request", "`fusionbench run ... --out DIR` runs a study into it"
        )
    codes = [OK]
    for one in found:
        if again or any(cell.state != "done" for cell in one.cells):
            codes.append(_go_on(one, options, queue, stream, again=again))
            if codes[-1] == INTERRUPTED:
                break
    if len(codes) == 1:
        stream.write(f"nothing is left: {sum(len(one.cells) for one in found)} cells are done\n")
    return max(codes)


def _go_on(
    one: "RequestState",
    options: RunOptions,
    queue: "SlurmOptions | None",
    stream: TextIO,
    *,
    again: bool,
) -> int:
    from fusionbench.cli.run import How, run
    from fusionbench.study.folders import with_folders
    from fusionbench.study.reading import from_plain

    stream.write(f"{one.request.study.get('name', '')}\n")
    study, plugged = with_folders(from_plain(one.request.study), options.plugins)
    _require_methods(one.request.labels, plugged)
    options = replace(options, plugins=plugged)
    return run(study, options, stream, How(part=_asked(one), queue=queue, note=False, again=again))


def _require_methods(labels: Sequence[str], plugins: Sequence[str]) -> None:
    """Raise UserError for a method of the request that neither the package nor a plug-in has."""
    from fusionbench.registry.catalog import read_catalog
    from fusionbench.registry.selection import split_inline

    known = read_catalog(plugins).methods
    if gone := [label for label in labels if split_inline(label)[0] not in known]:
        raise UserError(
            f"the request has the method {gone[0]}, which is not known here",
            "name the plug-in of the first run with --plugin",
        )


def _asked(one: "RequestState") -> "Part":
    """The cells that the request named, not those that its `all` means on this machine.

    The part raises UserError if this machine lacks some of them.
    """
    from fusionbench.records.states import wanted
    from fusionbench.study.parts import only, places

    asked = set(wanted(one.request))

    def part(plan: "Plan") -> "Plan":
        here = dict(zip(places(plan.cells), plan.cells, strict=True))
        if missing := sorted(asked - here.keys()):
            label, task, seed = missing[0]
            raise UserError(
                f"{len(missing)} cells of the request are not known here, such as {label} on "
                f"{task}, seed {seed}",
                "name its plug-ins with --plugin, install the data of its tasks",
            )
        return only(plan, {here[place].spec.id for place in asked})

    return part


@app.command("merge")
def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
) -> None:
    """Join folders of results into a new one with few files; a cell in several is kept once."""
    from fusionbench.records.merge import merge

    count, problems = merge(folders, out)
    say(problems)
    source = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    sys.stdout.write(f"{count} cells and tuning runs from {source}: {out}\n")
    raise typer.Exit(OK)
