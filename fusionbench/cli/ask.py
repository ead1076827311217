"""`fusionbench ask`: ask a trained model about pictures."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.cli.app import OK, Plugins, app, read
from fusionbench.cli.run import checked_device

if TYPE_CHECKING:
    from fusionbench.vlm.open import LayerReport, OpenModel

_EXAMPLE = 'fusionbench ask CELL picture.png "How many cubes?"'


@app.command("ask")
def command(
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
