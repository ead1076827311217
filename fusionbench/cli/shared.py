"""Shared by several commands: catalog, encoder cards, notes on stderr, CSV files."""

import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.registry.catalog import Catalog, read_catalog

if TYPE_CHECKING:
    from fusionbench.encoders.card import EncoderCard
    from fusionbench.records.store import Store
    from fusionbench.report.tables import Row


def read(plugins: Sequence[str], *, strict: bool = False) -> Catalog:
    """The catalog; its problems are printed to stderr.

    With `strict` every plug-in is imported in a child process, and one that fails raises UserError.
    """
    catalog = read_catalog(plugins, packed=packed_here())
    if strict:
        from fusionbench.registry.plugins import require_sound

        require_sound(catalog)
    say(catalog.problems)
    return catalog


def packed_here() -> Collection[str]:
    """Tasks of the packed folder, which do not need their data packages."""
    if not os.environ.get("FUSIONBENCH_DATA"):
        return ()
    from fusionbench.study.data import packed_tasks

    return packed_tasks()


def check_encoder(catalog: Catalog, name: str, image_size: int) -> "EncoderCard":
    """The card of an encoder. Raises UserError for an unknown name or an impossible size."""
    from fusionbench.registry.encoder_cards import describe

    try:
        return describe(catalog, name, image_size=image_size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), "`fusionbench list encoders` shows all") from error


def refuse_plugged(catalog: Catalog, encoder: str, command: str) -> None:
    """Raise UserError for an encoder of a plug-in, where a command knows only our own."""
    if encoder in catalog.encoders:
        raise UserError(
            f"{command} does not take encoders of plug-ins, such as {encoder!r}",
            "`fusionbench run` does",
        )


def found(store: "Store") -> Iterable[Problem]:
    """Problems found while reading a store's records."""
    store.finished()
    return store.problems


def say(problems: Iterable[Problem]) -> None:
    """One line each on stderr."""
    for problem in problems:
        sys.stderr.write(f"note: {problem}\n")


def write_rows(file: Path, rows: "Sequence[Row]") -> None:
    """Write a CSV file atomically. Raises UserError if that fails."""
    from fusionbench.records.files import write_atomic
    from fusionbench.report.tables import comma_separated

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, comma_separated(rows).encode())
    except OSError as error:
        raise disk_error(error, file) from error
