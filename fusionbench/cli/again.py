"""`fusionbench verify`, `rescore`, `command` and `reproduce`: results checked and made again."""

import hashlib
import random
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import FAILED, OK, Plugins, app, read, say
from fusionbench.cli.run import CACHE_GIB, LimitCache, checked_device
from fusionbench.records.cell import CellRecord, RunOptions

if TYPE_CHECKING:
    from fusionbench.records.store import Store
    from fusionbench.study.study import Study


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    sample: Annotated[int, typer.Option(min=0, help="Run so many cells again.")] = 0,
    draw: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as fits.")] = 0,
    limit_cache: LimitCache = CACHE_GIB,
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files and images.")] = "",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Read and hash every stored file, and run a sample of cells again; exit code 1 if one differs.

    Nothing in the folder is changed.
    """
    options = RunOptions(
        device=checked_device(device), workers=workers, data_root=data_root,
        plugins=tuple(plugin), quiet=True, cache_gib=limit_cache,
    )  # fmt: skip
    raise typer.Exit(verify(folder, options, sample=sample, draw=draw, stream=sys.stdout))


def verify(folder: Path, options: RunOptions, *, sample: int, draw: int, stream: TextIO) -> int:
    """Print what is wrong with files and which cells of the sample differ; the exit status."""
    from fusionbench.records.states import audit
    from fusionbench.records.store import Store

    store = Store.open(folder)
    finished = store.finished(reread=True)
    problems = audit(store, finished)
    stream.write("".join(f"{problem}\n" for problem in problems))
    stream.write(f"{len(finished)} cells read and hashed, {len(problems)} problems\n")
    if not sample:
        return FAILED if problems else OK
    done = [one for one in store.records(finished) if one.status == "done" and not one.source]
    chosen = random.Random(draw).sample(done, min(sample, len(done)))
    verdicts = list(_again(store, chosen, options))
    for one in verdicts:
        spec = one.record.spec
        what = f"{one.record.label or spec.method} on {spec.task}, seed {spec.seed}"
        stream.write(f"{one.record.id} {what}: {one.text}\n")
    counts = {word: sum(one.word == word for one in verdicts) for word in WORDS}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    stream.write(f"{len(chosen)} of {len(done)} cells run again: {said}\n")
    return FAILED if problems or counts[DIFFERS] else OK


EQUAL, WITHIN, DIFFERS, NOT_RUN = "equal bit for bit", "within tolerance", "different", "not run"
WORDS = (EQUAL, WITHIN, DIFFERS, NOT_RUN)


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What a second run of a cell gave."""

    record: CellRecord
    word: str
    details: str = ""

    @property
    def text(self) -> str:
        """The verdict with its reasons."""
        return f"{self.word}{f': {self.details}' if self.details else ''}"


def _again(
    store: "Store", records: Sequence[CellRecord], options: RunOptions
) -> Iterator[Reproduction]:
    """Run cells again in a temporary folder and compare."""
    from fusionbench.study.again import studies_of

    here = [record for record in records if not _needs(record, options)]
    for record in records:
        if record not in here:
            yield Reproduction(record=record, word=NOT_RUN, details=_needs(record, options))
    with tempfile.TemporaryDirectory(prefix="fusionbench-verify-") as place:
        for study, group in studies_of(store, here):
            yield from _run(store, study, group, replace(options, out=place))


def _needs(record: CellRecord, options: RunOptions) -> str:
    """What a cell of another kind of device needs; empty for one that can be run here."""
    facts = record.provenance.get("hardware", {})
    on_gpu = str(facts.get("device", "cpu")).startswith("cuda")
    # The parent does not load torch, so it looks for the driver's device instead.
    gpu_here = Path("/dev/nvidiactl").exists() and options.device != "cpu"
    if on_gpu and not gpu_here:
        named = (str(facts[name]) for name in ("gpu", "cuda", "driver") if name in facts)
        return f"it was run on a GPU and needs one: {', '.join(named)}"
    if not on_gpu and options.device.startswith("cuda"):
        return f"it was run on a CPU and needs --device cpu: {facts.get('cpu', '')}"
    return ""


def _run(
    store: "Store", study: "Study", records: Sequence[CellRecord], options: RunOptions
) -> Iterator[Reproduction]:
    from fusionbench.cli.run import execute
    from fusionbench.records.store import Store
    from fusionbench.study.parts import only
    from fusionbench.study.plan import resolve

    on_cpu = str(records[0].provenance.get("hardware", {}).get("device", "cpu")) == "cpu"
    options = replace(options, device="cpu") if on_cpu else options
    resolved = resolve(study, read(options.plugins), download=True, data_root=options.data_root)
    ids = {record.id for record in records}
    plan, _ = execute(resolved, options, part=lambda plan: only(plan, ids), note=False)
    planned = {cell.spec.id for cell in plan.cells}
    new = Store.open(options.out)
    reasons = {one.id: one.reason for one in new.failures()}
    for record in records:
        if record.id not in planned:
            code = record.provenance.get("code", {})
            needs = f"{code.get('fusionbench', '?')} {str(code.get('commit', ''))[:12]}".strip()
            details = f"its data, weights, method or plug-in differ here; it was made by {needs}"
            yield Reproduction(record=record, word=NOT_RUN, details=details)
        elif (second := new.find(record.id)) is None:
            lines = reasons.get(record.id, "").splitlines() or ["it has no record"]
            yield Reproduction(record=record, word=DIFFERS, details=f"it fails now: {lines[-1]}")
        else:
            yield _compared(store, record, new, second)


def _compared(store: "Store", first: CellRecord, new: "Store", second: CellRecord) -> Reproduction:
    from fusionbench.study.again import differences, same_machine

    exact = same_machine(first, second)
    outcomes = store.outcomes(first), new.outcomes(second)
    found = differences(first, second, outcomes, exact=exact)
    if found:
        return Reproduction(record=first, word=DIFFERS, details=", ".join(found))
    same = not differences(first, second, outcomes, exact=True)
    return Reproduction(record=first, word=EQUAL if same else WITHIN)


_WORDS = {"equal": "equal", "differs": "differ", "left out": "left out"}


@app.command("rescore")
def rescore_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the results.")],
    data_root: Annotated[str, typer.Option(help="Folder of benchmark files.")] = "",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Score the stored answers again and say what differs; exit code 1 on a difference.

    A damaged or foreign file counts as one. Nothing is written.
    """
    raise typer.Exit(rescore(folder, data_root=data_root, plugins=plugin, stream=sys.stdout))


def rescore(folder: Path, *, data_root: str, plugins: list[str], stream: TextIO) -> int:
    """Print each cell that differs or was left out, and the counts. Returns the exit status."""
    from fusionbench.records.store import Store
    from fusionbench.study.rescore import Rescorer

    store = Store.open(folder)
    counts: Counter[str] = Counter()
    for one in Rescorer(store=store, catalog=read(plugins), data_root=data_root).run():
        counts[one.verdict] += 1
        if one.verdict != "equal":
            spec = one.record.spec
            name = one.record.label or spec.method
            stream.write(f"{one.record.id} {name} on {spec.task}: {one.verdict}\n")
            stream.write("".join(f"  {line}\n" for line in one.details))
    say(store.problems)
    each = ", ".join(f"{counts[key]} {word}" for key, word in _WORDS.items())
    stream.write(f"{counts.total()} cells with answers: {each}\n")
    return FAILED if counts["differs"] or store.problems else OK


_END = "STUDY"
_AGAIN = "results/again"


@app.command("command")
def cell_command(
    cell: Annotated[str, typer.Argument(metavar="ID", help="Id of a cell, or its start.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/local"),
) -> None:
    """Print the command that runs one cell again, into a folder of its own."""
    raise typer.Exit(command_of(cell, out, sys.stdout))


def command_of(cell: str, folder: Path, stream: TextIO) -> int:
    """Print the command as lines for a shell, with what the cell was made by as comments."""
    from fusionbench.records.lookup import find_record, split_place
    from fusionbench.records.store import Store
    from fusionbench.study.again import studies_of

    home, name, model = split_place(cell, folder)
    store = Store.open(home)
    record = find_record(store, name, model=model)
    ((study, _),) = studies_of(store, [record])
    stream.write("".join(f"# {line}\n" for line in _made_by(record)))
    more = ["--cell", record.id, *_machine([record])]
    stream.write(_run_text(study, [*more, "--out", _AGAIN]))
    return OK


def _made_by(record: CellRecord) -> Iterator[str]:
    spec, facts = record.spec, record.provenance
    yield f"{record.label or spec.method} on {spec.task}, seed {spec.seed}: {record.status}"
    code, software = facts.get("code", {}), facts.get("software", {})
    state = " with changes" if code.get("dirty") else ""
    yield f"made by fusionbench {code.get('fusionbench', '?')} {code.get('commit', '')}{state}"
    yield ", ".join(f"{name} {version}" for name, version in sorted(software.items()))
    yield ", ".join(f"{name} {value}" for name, value in sorted(facts.get("hardware", {}).items()))
    for file, digest in sorted(facts.get("plugin_files", {}).items()):
        yield f"plug-in {file}, SHA-256 {digest}..."


def _machine(records: Sequence[CellRecord]) -> list[str]:
    """The flags that say where cells run and which plug-ins they need."""
    devices = {
        str(one.provenance.get("hardware", {}).get("device", "cpu")).partition(":")[0]
        for one in records
    }
    files = sorted({f for one in records for f in one.provenance.get("plugin_files", {})})
    device = ["--device", min(devices)] if len(devices) == 1 else []
    return [*device, *(word for file in files for word in ("--plugin", file))]


def _run_text(study: "Study", more: Sequence[str]) -> str:
    from fusionbench.study.again import study_text

    command = shlex.join(["fusionbench", "run", "/dev/stdin", *more])
    return f"{command} <<'{_END}'\n{study_text(study)}{_END}\n"


@app.command("reproduce")
def reproduce_command(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A file of DIR/report/tables, of any format.")
    ],
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Default: the report's folder.")
    ] = None,
    records: Annotated[bool, typer.Option("--records", help="Name every record.")] = False,
) -> None:
    """Make a table of a report again from its records and compare; exit code 1 if it differs.

    The records and the commands behind it are printed.
    """
    raise typer.Exit(reproduce(table, folder, names=records, stream=sys.stdout))


def reproduce(table: Path, folder: Path | None, *, names: bool, stream: TextIO) -> int:
    """Print whether the table follows from the records, and the commands behind both."""
    from fusionbench.records.store import Store
    from fusionbench.study.reading import from_plain

    if not table.is_file():
        raise UserError(f"there is no table {table}", "results/local/report/tables/summary.md")
    home = folder if folder is not None else table.resolve().parent.parent.parent
    store = Store.open(home)
    finished = store.finished(reread=True)
    say(store.problems)
    records = list(store.records(finished))
    equal = _made_again(store, table) == table.read_bytes()
    stream.write(f"{table}: {'follows from' if equal else 'differs from'} the records of {home}\n")
    if not equal:
        stream.write("made again with the study's own baseline, not that of `report --baseline`\n")
    stream.write(f"{len(records)} records, SHA-256 of their ids and outcomes {_digest(records)}\n")
    if names:
        lines = (f"{r.id} {r.label or r.spec.method} {r.spec.task} {r.spec.seed}" for r in records)
        stream.write("".join(f"{line}\n" for line in lines))
    stream.write("\n")
    for request in store.history.requests():
        stream.write(_run_text(from_plain(request.study), [*_machine(records), "--out", _AGAIN]))
    stream.write(f"fusionbench report {_AGAIN} --table {table.stem}\n")
    return OK if equal else FAILED


def _made_again(store: "Store", table: Path) -> bytes:
    """The bytes of the table's file, written anew; empty if the records give no such table."""
    from fusionbench.cli.summary import report_writer
    from fusionbench.report.build import ReportOptions

    write = report_writer()
    form = table.suffix.removeprefix(".")
    with tempfile.TemporaryDirectory(prefix="fusionbench-table-") as place:
        write(store.folder, Path(place), ReportOptions(formats=(form,), table=table.stem))
        made = Path(place) / "tables" / table.name
        return made.read_bytes() if made.exists() else b""


def _digest(records: Sequence[CellRecord]) -> str:
    """A name of the records behind a table."""
    text = "".join(f"{one.id} {one.status} {one.outcomes}\n" for one in records)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
