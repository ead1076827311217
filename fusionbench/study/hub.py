"""Conversations of a set on the hub, or of a folder of parquet files, by the package `datasets`.

Columns: `conversations` in LLaVA's form, and `image` (an image or null) or `images` (a list).
Images stay encoded until they are opened. No torch; `datasets` is imported where a set is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.study.conversations import Conversation, Index, conversation, scanned

PREFIX = "hub:"
_EXTRA = "pip install 'layer-fusionbench[hub]'"
_COLUMNS = "needed: conversations, and image or images for a set with images"


class HubSet:
    """The split `train` of a set."""

    def __init__(self, name: str, config: str = "") -> None:
        """`name`: an id of the hub or a folder. Raises UserError where it cannot be read."""
        self.name = name
        self._table, self._column = _undecoded(_load(name, config), name)

    @cached_property
    def index(self) -> Index:
        """See `Conversations`."""
        return scanned(self._all(), PREFIX + self.name)

    def __getitem__(self, item: int) -> Conversation:
        """One conversation."""
        return self._conversation(self._table[item], item)

    def _all(self) -> Iterable[Conversation]:
        for item, row in enumerate(self._table):
            yield self._conversation(row, item)

    def _conversation(self, row: Mapping[str, Any], item: int) -> Conversation:
        where = f"{PREFIX}{self.name}, item {item + 1}"
        pictures = _pictures(row.get(self._column), where) if self._column else {}
        values = {"image": list(pictures) or None, "conversations": row["conversations"]}
        return conversation(values, where, pictures)


def _load(name: str, config: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{PREFIX}{name} needs the package datasets", _EXTRA) from error
    try:
        table = datasets.load_dataset(name, config or None, split="train")
    # The package raises errors of its own, of the hub and of the network.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot read {PREFIX}{name}: {reason}", "an id of the hub or a folder of parquet files"
        ) from error
    if "conversations" not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(f"{PREFIX}{name} has no column conversations, it has {columns}", _COLUMNS)
    return table


def _undecoded(table: Any, name: str) -> tuple[Any, str]:
    """The set with encoded images, and their column; an empty name where it has none."""
    import datasets

    column = next((one for one in ("image", "images") if one in table.column_names), "")
    if not column:
        return table, ""
    kind = table.features[column]
    encoded: Any = datasets.Image(decode=False)
    if isinstance(getattr(kind, "feature", None), datasets.Image):
        return table.cast_column(column, datasets.List(encoded)), column
    if not isinstance(kind, datasets.Image):
        raise UserError(
            f"{PREFIX}{name}: the column {column} holds {kind}, not images",
            "download the set and name its JSON file with its folder of images",
        )
    return table.cast_column(column, encoded), column


def _pictures(value: Any, where: str) -> dict[str, Picture]:
    """The images of a row by their names: `image 1`, `image 2`, ..."""
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    held = [one for one in values if one is not None]
    return {
        f"image {number}": Picture(name=f"{where}: image {number}", content=_content(one))
        for number, one in enumerate(held, start=1)
    }


def _content(encoded: Mapping[str, Any]) -> bytes | Path:
    stored = encoded.get("bytes")
    return bytes(stored) if stored is not None else Path(str(encoded["path"]))
