"""`fusionbench fetch`: download an encoder or a language model now."""

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.cli.app import OK, app

_SMOLLM2, _WORDS = "smollm2-135m", "words"


@app.command("fetch")
def command(
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
    from fusionbench.readers.fetch import fetch_language

    return fetch_language(name)


def _encoder(name: str) -> Path:
    from fusionbench.encoders.fetch import fetch as fetch_encoder

    try:
        return fetch_encoder(name)
    except UserError:
        raise
    except ValueError as error:
        near = did_you_mean(name, [_SMOLLM2])
        hint = "language models: smollm2-135m, and hf:<id> with --language"
        raise UserError(f"{error}{near}", hint) from error
