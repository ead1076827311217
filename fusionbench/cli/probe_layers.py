"""`fusionbench probe-layers`: linear probes of every hidden state, task by task."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.api.errors import disk_error
from fusionbench.cli.app import OK, Plugins, app, check_encoder, read, refuse_plugged


@app.command("probe-layers")
def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Maps go to DIR/probes.")],
    encoder: Annotated[str, typer.Option(help="See `fusionbench list encoders`.")] = "nano",
    tasks: Annotated[list[str], typer.Option(help="all, names, globs.")] = ["all"],  # noqa: B006
    size: Annotated[int, typer.Option(min=0, help="Pixels; 0: the encoder's default.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Training examples.")] = 1000,
    val: Annotated[
        int, typer.Option(min=1, help="Validation examples, which choose the penalty.")
    ] = 300,
    test: Annotated[int, typer.Option(min=1, help="Test examples.")] = 500,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Fit a linear probe on every layer of an encoder, task by task; existing maps are kept."""
    limits = (train, val, test)
    raise typer.Exit(
        probe(
            out,
            encoder=encoder,
            tasks=tasks,
            size=size,
            limits=limits,
            plugins=plugin,
            stream=sys.stdout,
        )
    )


def probe(
    out: Path,
    *,
    encoder: str,
    tasks: Sequence[str],
    size: int,
    limits: tuple[int, int, int],
    plugins: Sequence[str],
    stream: TextIO,
) -> int:
    """Probe each task and print its best layer. Returns the exit code."""
    catalog = read(plugins)
    refuse_plugged(catalog, encoder, "probe-layers")
    check_encoder(catalog, encoder, size)
    from fusionbench.registry.selection import select_tasks, split_names

    names = [name for text in tasks for name in split_names(text)]
    chosen, left_out = select_tasks(catalog, names)
    for one in left_out:
        stream.write(f"left out: {one.card.name}: {one.reason}\n")
    from fusionbench.harness.probes import Limits, probe_tasks

    train, val, test = limits
    sizes = Limits(train=train, val=val, test=test)
    try:
        for done in probe_tasks(encoder, chosen, out, image_size=size, limits=sizes):
            best = max(range(len(done.map.val)), key=lambda layer: done.map.val[layer])
            score = f"hs[{best}] {100 * done.map.layers[best]:.1f} %, chosen on val"
            there = "kept, " if done.kept else ""
            stream.write(f"{done.map.task}: {there}best layer {score}: {done.file}\n")
    except OSError as error:
        raise disk_error(error, out) from error
    return OK
