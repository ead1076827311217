"""`fusionbench command` and `reproduce`: how to run one cell again, and what a table is made of."""

import hashlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import FAILED, OK, app, say
from fusionbench.records.cell import CellRecord

if TYPE_CHECKING:
    from fusionbench.records.store import Store
    from fusionbench.study.study import Study

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
    from fusionbench.study.study import from_plain

    if not table.is_file():
        raise UserError(f"there is no table {table}", "results/local/report/tables/summary.md")
    home = folder if folder is not None else table.resolve().parent.parent.parent
    store = Store.open(home)
    finished = store.finished(reread=True)
    say(store.problems)
    records = list(store.records(finished))
    equal = _made_again(store, table) == table.read_bytes()
    stream.write(f"{table}: {'follows from' if equal else 'differs from'} the records of {home}\n")
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
