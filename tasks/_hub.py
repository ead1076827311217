"""Tables as rows: sets of the Hugging Face hub (extra `hub`), and the choice of table by form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fusionbench.api import Source, UserError
from fusionbench.api.sources import EXTRA, HUB
from fusionbench.tasks._rows import Row
from fusionbench.tasks._tsv import tsv_rows


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An image of a set, read when it is opened."""

    data: Any
    row: int
    column: str
    position: int

    def read(self) -> bytes:
        """The bytes as stored."""
        value = self.data[self.row][self.column]
        one = value[self.position] if isinstance(value, list) else value
        return bytes(one["bytes"])


class Table:
    """A set as a sequence of rows of plain values; images stay encoded."""

    def __init__(self, data: Any) -> None:
        # The arrow form has the stored bytes, whatever the declared features decode to.
        self._data = data.with_format("arrow")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row."""
        if index >= len(self):
            raise IndexError(index)
        row: dict[str, Any] = self._data[index].to_pylist()[0]
        return row


def hub_rows(source: Source, hub: Mapping[str, str], config: str = "") -> Iterator[Row]:
    """Rows of a set. Raises UserError if it cannot be loaded."""
    data = open_set(source, hub, config or hub.get("config", ""))
    name = hub["id"]
    for index in range(len(data)):
        stored = partial(_stored, data, index) if isinstance(data, Table) else None
        yield Row(values=data[index], where=f"{name}, row {index + 1}", stored=stored)


def _stored(data: Table, row: int, column: str, position: int) -> Stored:
    return Stored(data=data, row=row, column=column, position=position)


def open_set(
    source: Source, hub: Mapping[str, str], config: str
) -> Sequence[Mapping[str, Any]] | Table:
    """A set by its id, or the parquet files below a folder. Raises UserError."""
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise UserError(f"reading {hub['id']} needs the package `datasets`", EXTRA) from error
    split = hub["split"]
    try:
        if source.root == Path(HUB):
            return Table(datasets.load_dataset(hub["id"], config or None, split=split))
        files = parquet_files(source.root, config, split)
        return Table(datasets.load_dataset("parquet", data_files=files, split="train"))
    except UserError:
        raise
    # Its readers raise classes of several libraries.
    except Exception as error:
        raise UserError(
            f"{hub['id']} cannot be read from {source.root}: {type(error).__name__}: {error}",
            f"download it: hf download --repo-type dataset {hub['id']}",
        ) from error


def parquet_files(folder: Path, config: str, split: str) -> list[str]:
    """Files of one split (of one configuration), sorted. Raises UserError if there is none."""
    found = sorted(
        str(file)
        for file in folder.rglob("*.parquet")
        if file.name.startswith((f"{split}-", f"{split}."))
        and (not config or config in file.relative_to(folder).parts)
    )
    if not found:
        where = f"{folder}/{config or '**'}/{split}-*.parquet"
        raise UserError(f"there is no {where}", "keep the names of the files of the hub")
    return found


def table_rows(source: Source, hub: Mapping[str, str]) -> Iterator[Row]:
    """Rows of a source that is a table: VLMEvalKit's TSV or a set of the hub."""
    return tsv_rows(source.root) if source.form == "tsv" else hub_rows(source, hub)
