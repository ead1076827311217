"""`fusionbench pack`: write data and weights into one folder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.api.errors import disk_error
from fusionbench.cli.app import OK, Plugins, Strict, app, check_encoder, read, refuse_plugged


@app.command("pack")
def command(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = ["all"],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="Encoder whose weights are packed.")] = "nano",
    size: Annotated[int, typer.Option(min=0, help="Pixels; 0: the encoder's default.")] = 0,
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """Write data and weights into one folder for a machine without network access."""
    if strict_plugins:
        read(plugin, strict=True)
    stream = sys.stdout
    code = pack(out, tasks=tasks, encoder=encoder, size=size, plugins=plugin, stream=stream)
    raise typer.Exit(code)


def pack(
    out: Path,
    *,
    tasks: Sequence[str],
    encoder: str,
    size: int,
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Pack tasks and weights into `out` and print the size. Returns the exit code."""
    catalog = read(plugins)
    refuse_plugged(catalog, encoder, "pack")
    pixels = size or check_encoder(catalog, encoder, 0).size
    from fusionbench.registry.selection import select_tasks, split_names
    from fusionbench.study.data import pack as write_pack

    names = [name for text in tasks for name in split_names(text)]
    chosen, left_out = select_tasks(catalog, names)
    for one in left_out:
        stream.write(f"left out: {one.card.name}: {one.reason}\n")
    try:
        count, written = write_pack(chosen, encoder, size=pixels, out=out)
    except OSError as error:
        raise disk_error(error, out) from error
    stream.write(f"{out}: data of {count} tasks, {written / 2**20:.1f} MiB\n")
    return OK
