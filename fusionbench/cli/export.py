"""`fusionbench export`: a trained model as a folder of its own."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusionbench.api.errors import UserError
from fusionbench.cli.app import OK, Plugins, app, read


@app.command("export")
def command(
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
