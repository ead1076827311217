"""`fusionbench fetch` and `pack`: weights and data for a machine without a network."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.api.errors import UserError, did_you_mean, disk_error
from fusionbench.cli.app import (
    OK,
    Plugins,
    Strict,
    app,
    check_encoder,
    read,
    refuse_plugged,
    usable_tasks,
)

_SMOLLM2, _WORDS = "smollm2-135m", "words"


@app.command("fetch")
def fetch_command(
    name: Annotated[
        str,
        typer.Argument(help="dinov2-small, smollm2-135m, hf:<id>, timm:<name>."),
    ],
    language: Annotated[
        bool, typer.Option("--language", help="hf:<id> is a language model, not an encoder.")
    ] = False,
) -> None:
    """Download the weights of an encoder or a language model into the cache."""
    raise typer.Exit(fetch(name, language=language, stream=sys.stdout))


def fetch(name: str, *, language: bool, stream: TextIO) -> int:
    """Fetch one checkpoint and print its path. Returns the exit code.

    Raises UserError for an unknown name and for a checkpoint that cannot be reached.
    """
    sys.stderr.write(f"note: fetching {name}\n")
    wanted = _language if language or name in (_SMOLLM2, _WORDS) else _encoder
    try:
        place = wanted(name)
    except OSError as error:
        from fusionbench.registry.catalog import OFFLINE

        raise UserError(str(error), OFFLINE) from error
    stream.write(f"{place}\n")
    return OK


def _language(name: str) -> Path:
    from fusionbench.models.readers.fetch import fetch_language

    return fetch_language(name)


def _encoder(name: str) -> Path:
    from fusionbench.models.encoders.fetch import fetch as fetch_encoder

    try:
        return fetch_encoder(name)
    except UserError:
        raise
    except ValueError as error:
        near = did_you_mean(name, [_SMOLLM2])
        hint = "language models: smollm2-135m, and hf:<id> with --language"
        raise UserError(f"{error}{near}", hint) from error


@app.command("pack")
def pack_command(
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
    from fusionbench.study.data import pack as write_pack

    chosen = usable_tasks(catalog, tasks, stream)
    try:
        count, written = write_pack(chosen, encoder, size=pixels, out=out)
    except OSError as error:
        raise disk_error(error, out) from error
    stream.write(f"{out}: data of {count} tasks, {written / 2**20:.1f} MiB\n")
    return OK
