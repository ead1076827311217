"""Conversations in LLaVA's form, from a file or the hub: checked, hashed, read one by one.

An item is `{"id": ..., "image": name, list or absent, "conversations": [{"from": "human", "value":
...}, {"from": "gpt", "value": ...}, ...]}`; a question holds one `<image>` mark for each image.
Reference: data of LLaVA-1.5, github.com/haotian-liu/LLaVA (c121f04). No torch.

A set of the hub has the columns `conversations` in LLaVA's form, and `image` (an image or null) or
`images` (a list). Images stay encoded until they are opened. No torch; `datasets` is imported where
a set is read.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.models.readers.text import IMAGE, Turn
from fusionbench.records.cell import canonical
from fusionbench.records.files import cache_dir, sealed, unsealed, write_atomic
from fusionbench.study.json_items import items, read_item

_FORMAT = 2
_KEYS = "needed: conversations, a list of {from: human or gpt, value: text}"
_ROLES = ("human", "gpt")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One item: its images and its turns."""

    name: str
    """File and item, as errors name it."""
    images: tuple[str, ...]
    """Names of its images, in the order of their marks."""
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What one pass over a set of conversations finds."""

    places: Int[np.ndarray, "item 2"]
    """First byte of each item and the byte behind its last; zeros for a set of the hub."""
    turns: Int[np.ndarray, " item"]
    images: Int[np.ndarray, " item"]
    length: Int[np.ndarray, " item"]
    """UTF-8 bytes of all questions and answers."""
    hash: str
    """SHA-256 of questions, answers, names and sizes of the images, in order."""


class Conversations(Protocol):
    """A set of conversations in a fixed order."""

    @property
    def index(self) -> Index:
        """The result of one pass over the set. Raises UserError for an item that is wrong."""
        ...

    def __getitem__(self, item: int) -> Conversation:
        """One conversation; its images are opened later."""
        ...


def conversation(
    item: object,
    where: str,
    pictures: Mapping[str, Picture] | None = None,
    folder: Path | None = None,
) -> Conversation:
    """The checked conversation of an item.

    `where` names file, line and item in errors. Images are `pictures` by name, else files below
    `folder`. Raises UserError for another form, roles out of order, an empty answer, and where
    `<image>` marks and images differ in number.
    """
    if not isinstance(item, Mapping):
        raise UserError(f"{where} is no object, got {_short(item)}", _KEYS)
    names = _image_names(item.get("image"), where)
    turns = _turns(item.get("conversations"), where)
    marks = sum(turn.question.count(IMAGE) for turn in turns)
    if marks != len(names):
        raise UserError(
            f"{where}: the questions have {marks} {IMAGE} marks, `image` names {len(names)} images",
            "one mark in a question for each image",
        )
    held = pictures or {}
    found = [held.get(name) or _file(name, where, folder) for name in names]
    return Conversation(name=where, images=tuple(names), pictures=tuple(found), turns=turns)


def _image_names(value: object, where: str) -> list[str]:
    given: list[object] = [] if value is None else value if isinstance(value, list) else [value]
    names = [name for name in given if isinstance(name, str) and name and "\0" not in name]
    if len(names) != len(given) or not all(map(_is_unicode, names)):
        raise UserError(
            f"{where}: `image` must be a name, a list of names or absent, got {_short(value)}",
            'for example "image": "coco/train2017/000000000009.jpg"',
        )
    return names


def _turns(messages: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where}: no conversations, got {_short(messages)}", _KEYS)
    values = [_text(message, number, where) for number, message in enumerate(messages, start=1)]
    if len(values) % 2:
        raise UserError(
            f"{where}: {len(values)} messages: the last question has no answer",
            "human and gpt take turns, gpt is last",
        )
    pairs = zip(values[::2], values[1::2], strict=True)
    turns = tuple(Turn(question=question, answer=answer) for question, answer in pairs)
    for number, turn in enumerate(turns, start=1):
        if not turn.answer.strip():
            raise UserError(f"{where}: the answer of turn {number} is empty", "remove the turn")
        if IMAGE in turn.answer:
            raise UserError(
                f"{where}: the answer of turn {number} holds an {IMAGE} mark",
                "marks are allowed in questions only",
            )
    return turns


def _text(message: object, number: int, where: str) -> str:
    """The text of a message. Raises UserError unless it is its role's turn."""
    wanted = _ROLES[(number - 1) % 2]
    role = message.get("from") if isinstance(message, Mapping) else None
    if role != wanted:
        shown = repr(role) if isinstance(message, Mapping) else _short(message)
        raise UserError(
            f"{where}: message {number} is from {shown}, expected {wanted!r}",
            "human and gpt take turns, human is first",
        )
    value = message["value"] if isinstance(message, Mapping) and "value" in message else None
    if not isinstance(value, str):
        raise UserError(
            f"{where}: message {number} has no text `value`, got {_short(value)}", _KEYS
        )
    if not _is_unicode(value):
        raise UserError(
            f"{where}: message {number} holds half of a character, {_short(value)}",
            "a text was cut inside an emoji or another pair of surrogates: remove the rest of it",
        )
    return value


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; JSON allows one half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file(name: str, where: str, folder: Path | None) -> Picture:
    return Picture(name=f"{where}: {name}", content=(folder or Path()) / name)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class ConversationFile:
    """A JSON list or JSON lines on disk, with the folder of its images."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """`images` is the folder that image names start from; by default that of the file.

        Raises UserError for a file or folder that does not exist.
        """
        self.path, self.images = path, images or path.parent
        if not path.is_file():
            raise UserError(
                f"there is no conversation file {path}", "a .json or .jsonl in LLaVA's form"
            )
        if not self.images.is_dir():
            raise UserError(f"there is no folder of images {self.images}", f"named for {path}")
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """See `Conversations`; remembered while the file and the sizes of all images stay."""
        if self._index is None:
            state = self.path.stat()
            stamp = [str(self.path.resolve()), str(self.images.resolve()), state.st_size]
            # Not the time of change of the contents alone, which `cp -p` keeps.
            stamp += [state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
            key = canonical([_FORMAT, *stamp])
            note = cache_dir(
                "conversations", hashlib.sha256(key.encode()).hexdigest()[:24] + ".npz"
            )
            self._index = _remembered(note, self.images) or self._scan(note)
        return self._index

    def __getitem__(self, item: int) -> Conversation:
        """One conversation."""
        start, stop = (int(byte) for byte in self.index.places[item])
        return self._conversation(read_item(self.path, start, stop), item)

    def _conversation(self, value: object, item: int, line: int = 0) -> Conversation:
        where = f"{self.path.name}, " + (f"line {line}, " if line else "") + f"item {item + 1}"
        return conversation(value, where, folder=self.images)

    def _scan(self, note: Path) -> Index:
        found, sizes = list[tuple[int, int]](), dict[str, int]()

        def all_items() -> Iterable[Conversation]:
            for number, one in enumerate(items(self.path)):
                found.append((one.start, one.stop))
                item = self._conversation(one.value, number, one.line)
                sizes.update((name, _bytes(self.images, name)) for name in item.images)
                yield item

        index = scanned(all_items(), str(self.path))
        return _remember(note, replace(index, places=np.array(found, dtype=np.int64)), sizes)


def scanned(conversations: Iterable[Conversation], source: str) -> Index:
    """The index of conversations, without their places.

    Raises UserError for an empty set, and for images that are missing or empty, with the first of
    them and their number.
    """
    digest, numbers = hashlib.sha256(), list[tuple[int, int, int]]()
    missing: list[str] = []
    for given in conversations:
        texts = [[turn.question, turn.answer] for turn in given.turns]
        sizes = [_size(picture, missing) for picture in given.pictures]
        images = [list(pair) for pair in zip(given.images, sizes, strict=True)]
        digest.update(json.dumps([texts, images]).encode() + b"\n")
        length = sum(len(text.encode()) for pair in texts for text in pair)
        numbers.append((len(texts), len(images), length))
    if not numbers:
        raise UserError(f"{source} holds no conversation", "the file may be truncated")
    _refuse_missing(missing)
    turns, images_of, lengths = np.array(numbers, dtype=np.int64).T
    return Index(
        places=np.zeros((len(numbers), 2), dtype=np.int64),
        turns=turns,
        images=images_of,
        length=lengths,
        hash=digest.hexdigest(),
    )


def _size(picture: Picture, missing: list[str]) -> int:
    """Bytes of an image; 0 for one that is missing or empty, which is added to `missing`."""
    try:
        size = picture.size()
    except UserError as error:
        missing.append(error.message)
        return 0
    if not size:
        missing.append(f"{picture.name} is an empty file")
    return size


def _refuse_missing(missing: list[str]) -> None:
    if missing:
        others = f", and {len(missing) - 1} more images are missing" if len(missing) > 1 else ""
        raise UserError(
            missing[0] + others, "restore the images, or remove the items that name them"
        )


def _bytes(folder: Path, name: str) -> int:
    """Size of an image as the file system has it; -1 for one that is not there."""
    try:
        return (folder / name).stat().st_size
    except OSError:
        return -1


def _remember(note: Path, index: Index, sizes: Mapping[str, int]) -> Index:
    """The index, written with the names and sizes of all images."""
    file = io.BytesIO()
    names = np.frombuffer(json.dumps(list(sizes)).encode(), dtype=np.uint8)
    held = {"names": names, "sizes": np.array(list(sizes.values()), dtype=np.int64)}
    np.savez(file, **{**vars(index), **held, "hash": np.array(index.hash)})
    # Without a writable cache folder the file is read each time: slower, never wrong.
    with suppress(OSError):
        write_atomic(note, sealed(note, file.getvalue()))
    return index


def _remembered(note: Path, folder: Path) -> Index | None:
    """The index of an earlier pass; None where an image has another size by now."""
    try:
        with np.load(io.BytesIO(unsealed(note)), allow_pickle=False) as held:
            names = json.loads(held["names"].tobytes())
            if [_bytes(folder, name) for name in names] != held["sizes"].tolist():
                return None
            arrays = {name: held[name] for name in ("places", "turns", "images", "length")}
            return Index(**arrays, hash=str(held["hash"]))
    except (OSError, ValueError, KeyError, EOFError):
        return None


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
