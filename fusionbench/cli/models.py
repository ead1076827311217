"""`fusionbench ask`, `export` and `import-lmms`: models of the track `vlm` and their answers."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.cli.app import OK, Plugins, app, read, say
from fusionbench.cli.run import checked_device

if TYPE_CHECKING:
    from fusionbench.records.imports import Imported
    from fusionbench.vlm.open import LayerReport, OpenModel

_EXAMPLE = 'fusionbench ask CELL picture.png "How many cubes?"'


@app.command("ask")
def ask_command(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="Id of a cell or model, or an exported folder.")
    ],
    words: Annotated[
        list[str], typer.Argument(metavar="PICTURE... QUESTION", help="Image files, a question.")
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Also print what each layer contributes.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most new tokens of the answer.")] = 128,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/local"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Ask a model of the track vlm about pictures and print its answer."""
    pictures, question = split_words(words)
    checked_device(device)
    from fusionbench.launchers.runner import choose_device
    from fusionbench.vlm.open import open_model

    opened = open_model(cell, out, catalog=read(plugin), device=choose_device(device))
    answer(opened, pictures, question, layers=layers, limit=limit, stream=sys.stdout)
    raise typer.Exit(OK)


def split_words(words: Sequence[str]) -> tuple[list[Picture], str]:
    """The pictures and the question behind them. Raises UserError for a file that is not there."""
    *files, question = words
    if os.path.isfile(question):  # noqa: PTH113  (False for a text that is too long for a name)
        raise UserError(f"there is no question behind {question}", _EXAMPLE)
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"there is no picture {file}", _EXAMPLE)
    return [Picture(name=file, content=Path(file)) for file in files], question


def answer(
    opened: "OpenModel",
    pictures: Sequence[Picture],
    question: str,
    *,
    layers: bool,
    limit: int,
    stream: TextIO,
) -> None:
    """Print the answer, with `layers` also the method's own weights and each layer's share."""
    if not layers:
        stream.write(f"{opened.ask(pictures, question, limit=limit)}\n")
        return
    from fusionbench.vlm.open import explain

    found = explain(opened, pictures, question, limit=limit)
    stream.write(f"{found.answer}\n")
    for line in layer_lines(opened, found):
        stream.write(f"{line}\n")


def layer_lines(opened: "OpenModel", found: "LayerReport") -> list[str]:
    """The report on the layers as lines of text."""
    from fusionbench.report.layer_table import places_of, tap_text

    lines = []
    if found.log_probability is not None:
        lines.append(f"log-probability of the answer: {found.log_probability:.4f} nats")
    for name, values in found.trace.items():
        places = places_of(opened.record, len(values))
        numbers = (f"{p}: {v:.4f}" for p, v in zip(places, values, strict=True))
        lines += [f"{name}, the method's own:", *(f"  {line}" for line in numbers)]
    if not found.trace:
        lines.append("the method has no weights of layers of its own")
    if found.reason:
        return [*lines, f"without one layer: not defined: {found.reason}"]
    lines.append("change of the log-probability without one layer, the mean of the others instead:")
    pairs = zip(found.taps, found.changes, strict=True)
    return lines + [f"  tap {tap_text(tap)}: {change:+.4f}" for tap, change in pairs]


@app.command("export")
def export_command(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Id of a cell or model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/local"),
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Write a model of the track vlm as safetensors, configuration and model card."""
    export(cell, folder, out=out, plugins=plugin)
    sys.stdout.write(f"{folder}\n")
    raise typer.Exit(OK)


def export(cell: str, folder: Path, *, out: Path, plugins: list[str]) -> None:
    """Export a cell's model with the records of all its tasks. Raises UserError."""
    from fusionbench.records.lookup import of_model, split_place, twins
    from fusionbench.records.store import Store
    from fusionbench.study.training import BLIND
    from fusionbench.vlm.export import is_export, refuse_taken, write_export
    from fusionbench.vlm.open import open_model

    refuse_taken(folder)
    if is_export(Path(cell)):
        raise UserError(f"{cell} is an exported model already", "give the id of a cell")
    opened = open_model(cell, out, catalog=read(plugins))
    store = Store.open(split_place(cell, out)[0])
    blind = twins(store, opened.record, BLIND)
    write_export(opened, of_model(store, opened.record), folder, blind=blind)


@app.command("import-lmms")
def import_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="lmms-eval's --output_path.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of results to write into.")
    ] = Path("results/lmms"),
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Our own cells, if not where model_args says."),
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="TEXT", help="Version of lmms-eval; its files do not name it.")
    ] = "",
) -> None:
    """Read results and samples of lmms-eval into records of the track vlm."""
    raise typer.Exit(import_results(folder, out, results, version, sys.stdout))


def import_results(
    folder: Path, out: Path, results: Path | None, version: str, stream: TextIO
) -> int:
    """Import a folder and print one line for each record. Returns the exit code.

    Raises UserError for files that cannot be read; nothing is written then.
    """
    from fusionbench.records.imports import import_folder

    found, problems = import_folder(folder, out, results=results, version=version)
    say(problems)
    for one in found:
        stream.write(f"{_imported_line(one)}\n")
    fresh = sum(one.fresh for one in found)
    stream.write(f"{fresh} records imported, {len(found) - fresh} were there: {out}\n")
    return OK


def _imported_line(one: "Imported") -> str:
    record = one.record
    score = "no score" if record.score is None else f"{record.metric} {record.score:.4f}"
    of = f"{score} of {record.examples} questions"
    notes = "".join(f"; {note}" for note in record.notes)
    return f"{record.label} on {record.spec.task}: {of}{notes}"
