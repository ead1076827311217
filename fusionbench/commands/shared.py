"""What several commands need: the catalog, an encoder's card, a store's problems, said."""

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.catalog import Catalog, read_catalog
from fusionbench.errors import Problem, UserError, disk_error

if TYPE_CHECKING:
    from fusionbench.encoders.card import EncoderCard
    from fusionbench.store import Store


def read(plugins: Sequence[str]) -> Catalog:
    """The catalog; what could not be used is said and stops nothing."""
    packed: Collection[str] = ()
    if os.environ.get("FUSIONBENCH_DATA"):
        from fusionbench.packed import packed_tasks

        packed = packed_tasks()
    catalog = read_catalog(plugins, packed=packed)
    say(catalog.problems)
    return catalog


def check_encoder(name: str, image_size: int) -> "EncoderCard":
    """What is known of an encoder. Raises UserError for a name or size that cannot be."""
    from fusionbench.encoders.catalog import describe

    try:
        return describe(name, image_size=image_size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), "`fusionbench list encoders` shows all") from error


def found(store: "Store") -> Iterable[Problem]:
    """What reading a store's records brought to light."""
    store.finished()
    return store.problems


def say(problems: Iterable[Problem]) -> None:
    """One line each on stderr."""
    for problem in problems:
        sys.stderr.write(f"note: {problem}\n")


def write_rows(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A table as CSV, whole or not at all. Raises UserError if the file cannot be written."""
    from fusionbench.cache import write_atomic
    from fusionbench.report.tables import comma_separated

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, comma_separated([dict(row) for row in rows]).encode())
    except OSError as error:
        raise disk_error(error, file) from error
