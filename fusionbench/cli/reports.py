"""`fusionbench report`, `check-claims`, `power`, `diff` and `paper`: tables from results."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from fusionbench.cli.app import FAILED, INTERRUPTED, OK, Plugins, app, note, read, say, write_rows
from fusionbench.cli.run import CACHE_GIB, LimitCache
from fusionbench.records.cell import RunOptions

if TYPE_CHECKING:
    from fusionbench.report.build import ReportOptions
    from fusionbench.study.study import Study

FORMATS = "md,tex,csv,html"


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report.")] = None,
    baseline: Annotated[
        str, typer.Option(metavar="M", help="Compare with M; all contrasts are then exploratory.")
    ] = "",
    table: Annotated[str, typer.Option(metavar="NAME", help="Write one table only.")] = "",
    formats: Annotated[
        str, typer.Option("--format", metavar=FORMATS, help="Some of them, with commas.")
    ] = FORMATS,
) -> None:
    """Write tables, a plot and a page from a folder of results."""
    from fusionbench.api.errors import UserError
    from fusionbench.cli.summary import report_writer

    report_writer()
    from fusionbench.report.build import ReportOptions

    names = tuple(name.strip() for name in formats.split(",") if name.strip())
    if not names:
        raise UserError("--format names no format", f"some of {FORMATS}")
    wanted = ReportOptions(formats=names, table=table, baseline=baseline or None)
    raise typer.Exit(report(folder, out, sys.stdout, wanted))


def report(
    folder: Path, out: Path | None, stream: TextIO, wanted: "ReportOptions | None" = None
) -> int:
    """Write the report of a folder; print the path of its page, or of the files of one table."""
    from fusionbench.cli.summary import report_writer

    paths = report_writer()(folder, out, wanted, hear=say)
    files = paths.written if wanted and wanted.table else (paths.page,)
    stream.write("".join(f"{file}\n" for file in files))
    return OK


@app.command("check-claims")
def check_claims_command(
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
    from fusionbench.report.claims import answers, load_claims, long_rows, page
    from fusionbench.stats.verdicts import Verdict

    stated = load_claims(claims)
    results = Results.open(folder)
    say(results.store.problems)
    found = answers(stated, results, read(plugins))
    stream.write(page(found, str(folder)))
    if out is not None:
        write_rows(out, long_rows(found))
    return FAILED if any(answer.verdict is Verdict.FAILS for answer in found) else OK


if TYPE_CHECKING:
    from fusionbench.report.power import PowerOptions


@app.command("power")
def power_command(
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
    from fusionbench.report.power import PowerOptions

    names = tuple(name for text in methods for name in split_names(text))
    wanted = PowerOptions(
        effect=effect, pilot=pilot, baseline=baseline, methods=names, contrasts=contrasts
    )
    raise typer.Exit(power(folder, wanted, out=out, stream=sys.stdout))


def power(folder: Path, wanted: "PowerOptions", *, out: Path | None, stream: TextIO) -> int:
    """Write the plan as Markdown, and every contrast as CSV where asked."""
    from fusionbench.api.errors import UserError
    from fusionbench.records.pairs import Results
    from fusionbench.report.power import long_rows, page, planned

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


@app.command("diff")
def diff_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of results.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[Path | None, typer.Option(help="Write the differences as CSV, too.")] = None,
) -> None:
    """Compare two folders: what was asked, what ran, where, and the paired score differences."""
    raise typer.Exit(diff(first, second, out=out, stream=sys.stdout))


def diff(first: Path, second: Path, *, out: Path | None, stream: TextIO) -> int:
    """Write the comparison as Markdown, and every difference as CSV where asked."""
    from fusionbench.records.pairs import Results
    from fusionbench.report.diff import Folder, page

    a, b = (Folder(name=str(name), results=Results.open(name)) for name in (first, second))
    text, rows = page(a, b)
    stream.write(text)
    if out is not None:
        write_rows(out, rows)
    return OK


NAMES = "mema, dense_connector, lsf or mmfuser"
"""For `--help`; a test keeps it equal to `papers.yaml`."""
LOCAL = Path("results/local")


@app.command("paper")
def paper_command(
    name: Annotated[str, typer.Argument(help=NAMES)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")] = LOCAL,
    out: Annotated[Path | None, typer.Option(help="Default: DIR/report/paper.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Run what its tables lack.")] = False,
    preset: Annotated[str, typer.Option(help="Of a folder without a study: quick, ...")] = "",
    track: Annotated[str, typer.Option(help="probe, or vlm: inside a language model.")] = "",
    tasks: Annotated[list[str], typer.Option(help="Default: those of the study.")] = [],  # noqa: B006
    seeds: Annotated[int | None, typer.Option(help="How many runs of each cell.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: LimitCache = CACHE_GIB,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what --run would.")] = False,
) -> None:
    """Write a paper's tables with its published numbers and ours, and run what they lack."""
    if run or dry_run:
        options = RunOptions(
            out=str(folder), device=device, workers=workers, quiet=quiet, cache_gib=limit_cache
        )
        ask = {"preset": preset, "track": track, "tasks": tasks, "seeds": seeds}
        code = run_lacking(name, options, ask, sys.stdout, dry_run=dry_run)
        if dry_run or code == INTERRUPTED:
            raise typer.Exit(code)
    raise typer.Exit(write(name, folder, out, sys.stdout, show=run))


def run_lacking(
    name: str, options: RunOptions, ask: Mapping[str, Any], stream: TextIO, *, dry_run: bool
) -> int:
    """Run the cells that a paper's tables lack, in the folder's own study or in a preset.

    `ask` has `preset`, `track`, `tasks` and `seeds` as the command line gives them, empty where it
    says nothing. Returns the exit status. Raises UserError for an unknown paper.
    """
    from fusionbench.cli.run import checked_device, execute, exit_status, show_plan
    from fusionbench.report.paper import paper
    from fusionbench.study.plan import resolve

    chosen = paper(name)
    checked_device(options.device)
    study, noted = _study_of(Path(options.out), ask)
    methods = tuple(chosen.methods(study.track))
    study = replace(study, methods=methods, settings={}, contrasts=(), references=False)
    if dry_run:
        return show_plan(study, options, stream)
    resolved = resolve(study, read(options.plugins), download=True, hear=note)
    plan, result = execute(resolved, options, note=not noted)
    return exit_status(plan, result, stream)


def _study_of(folder: Path, ask: Mapping[str, Any]) -> tuple["Study", bool]:
    """The study that a folder was last asked for, or a preset; whether it is the folder's own."""
    from fusionbench.records.store import Store
    from fusionbench.study.reading import from_plain, with_overrides
    from fusionbench.study.study import preset

    changes = {"tasks": ask["tasks"], "seeds": ask["seeds"]}
    if folder.is_dir() and not ask["preset"]:
        for request in reversed(Store.open(folder).history.requests()):
            study = from_plain(request.study)
            if ask["track"] in ("", study.track):
                return with_overrides(study, **changes), True
    start = preset(ask["preset"] or "quick", ask["track"] or "probe")
    return with_overrides(start, **changes), False


def write(name: str, folder: Path, out: Path | None, stream: TextIO, *, show: bool = False) -> int:
    """Write the page and its tables; print the path of the page, with `show` the page as well."""
    from fusionbench.records.pairs import Results
    from fusionbench.report.paper import paper, run_command, write_paper

    chosen = paper(name)
    results = Results.open(folder)
    say(results.store.problems)
    home = out if out is not None else folder / "report" / "paper"
    known = {one.label for one in results.records}
    wanted = {track: chosen.methods(track) for track in {one.spec.track for one in results.records}}
    for track, names in sorted(wanted.items()):
        if lacking := [one for one in names if one not in known]:
            note(
                f"{len(lacking)} of {len(names)} methods of its tables have no record here "
                f"(track {track}): `{run_command(name, folder)}` runs them"
            )
    page = write_paper(chosen, results, home)
    if show:
        stream.write(page.read_text(encoding="utf-8") + "\n")
    stream.write(f"{page}\n")
    return OK
