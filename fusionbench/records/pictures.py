"""Questions, answers and small pictures of test examples: `DIR/pictures/<task>-<key>.json`.

A run writes one file for each task, so that a report shows examples from the folder alone and with
the same bytes everywhere; the compact form has a line for each task in `pictures.jsonl`. No score
depends on them. Pillow is imported where a picture is made.
"""

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from fusionbench.api.errors import Problem
from fusionbench.records.cell import canonical, checksum, json_object
from fusionbench.records.files import ANY_SIZE, content, why
from fusionbench.records.schema import check_types

FOLDER = "pictures"
PICTURES = "pictures.jsonl"
"""Of the compact form: the contents of these files, a line each."""
SCHEMA = 1
MOST = 160
"""Examples with a picture: the first ones of the test split, whose order is random and fixed."""
_SIDE = 64
"""Longest side of a picture in pixels; smaller ones keep their size."""
_COLUMNS = 16
_QUALITY = 50
_SOFTEST = 6
"""Effort of the WebP encoder: the slowest, smallest."""


@dataclass(frozen=True, kw_only=True)
class ExamplePictures:
    """The test examples of one task in the order of their outcomes."""

    task: str
    data: str
    """Hash of the task's data, as in the records."""
    items: str
    """Hash of the examples' names, as in the records."""
    texts: tuple[str, ...]
    """Distinct questions."""
    questions: tuple[int, ...]
    """Row of each example's question in `texts`."""
    answers: tuple[str, ...]
    """The closed answer set."""
    right: tuple[int, ...]
    """Row of each example's true answer in `answers`."""
    tiles: tuple[int, ...]
    """Tile of each of the first examples; two questions about one image share it."""
    width: int
    height: int
    """Of a tile, in pixels."""
    columns: int
    """Tiles in a row of the sheet."""
    sheet: str
    """All tiles as one WebP image, in base64."""
    schema: int = SCHEMA

    def question(self, example: int) -> str:
        """The question of an example."""
        return self.texts[self.questions[example]]

    def answer(self, example: int) -> str:
        """The true answer of an example."""
        return self.answers[self.right[example]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in pixels."""
        rows = -(-(max(self.tiles, default=-1) + 1) // self.columns)
        return self.columns * self.width, rows * self.height

    def to_json(self) -> str:
        """Canonical JSON with a checksum: equal examples, equal text."""
        values = json_object(canonical(asdict(self)))
        return canonical(values | {"checksum": checksum(values)})


def picture_file(folder: Path, task: str, data: str, items: str) -> Path:
    """The file of a task's examples in a live folder of results."""
    key = hashlib.sha256(f"{data} {items}".encode()).hexdigest()[:12]
    return folder / FOLDER / f"{task}-{key}.json"


def picture_name(one: ExamplePictures) -> str:
    """Name of the file of these examples."""
    return picture_file(Path(), one.task, one.data, one.items).name


def picture_files(folder: Path) -> list[Path]:
    """The files of all tasks: the compact form's, then those of a live folder by name."""
    compact = folder / PICTURES
    return [*([compact] if compact.exists() else []), *sorted((folder / FOLDER).glob("*.json"))]


def has_pictures(file: Path) -> bool:
    """Whether a folder has the contents of a `picture_file`, as a file or in the compact form."""
    folder = file.parent.parent
    if file.exists() or not (folder / PICTURES).exists():
        return file.exists()
    return file.name in map(picture_name, read_pictures(folder, []))


def draw_sheet(
    images: UInt8[np.ndarray, "image height width 3"], rows: Int[np.ndarray, " example"]
) -> tuple[tuple[int, ...], tuple[int, int], int, str]:
    """The tile of each of the first examples, the size of a tile, columns, and the sheet.

    `rows` are the image of each example. Images with a longer side than 64 pixels are made smaller.
    """
    from PIL import Image

    shown = np.asarray(rows)[:MOST]
    used, tiles = np.unique(shown, return_inverse=True)
    height, width = images.shape[1:3]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(_COLUMNS, len(used))
    sheet = Image.new("RGB", (columns * size[0], -(-len(used) // columns) * size[1]))
    for place, row in enumerate(used):
        tile = Image.fromarray(images[row])
        if tile.size != size:
            tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % columns * size[0], place // columns * size[1]))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=_QUALITY, method=_SOFTEST)
    text = base64.b64encode(file.getvalue()).decode()
    return tuple(map(int, tiles)), size, columns, text


def read_pictures(folder: Path, problems: list[Problem]) -> Iterator[ExamplePictures]:
    """The examples of all tasks by name; a file or line that holds none is added to `problems`."""
    found: dict[str, ExamplePictures] = {}
    for file in picture_files(folder):
        for source, one in _pictures(file):
            if isinstance(one, ExamplePictures):
                found.setdefault(picture_name(one), one)
            else:
                problems.append(Problem(source=source, message=f"ignored: {why(one)}"))
    yield from (found[name] for name in sorted(found))


def _pictures(file: Path) -> Iterator[tuple[str, ExamplePictures | Exception]]:
    """Source and contents of each line of a file, or why it cannot be read."""
    try:
        lines = content(file, ANY_SIZE).decode("utf-8", "replace").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        yield str(file), error
        return
    for number, line in enumerate(lines, 1):
        source = f"{file}:{number}" if file.name == PICTURES else str(file)
        try:
            yield source, _read(line)
        except (ValueError, TypeError, KeyError) as error:
            yield source, error


def _read(text: str) -> ExamplePictures:
    values = json_object(text)
    if values.pop("checksum", None) != checksum(values):
        raise ValueError("edited: the checksum does not match the contents")
    lists = ("texts", "questions", "answers", "right", "tiles")
    found = ExamplePictures(**values | {name: tuple(values[name]) for name in lists})
    check_types(found)
    _check(found)
    return found


def _check(found: ExamplePictures) -> None:
    """Raise ValueError for rows outside their lists and for a sheet that is no WebP image."""
    if found.schema != SCHEMA:
        raise ValueError(f"schema {found.schema}, this version reads {SCHEMA}")
    if len(found.questions) != len(found.right) or len(found.tiles) > len(found.right):
        raise ValueError("its lists differ in length")
    _check_rows(found.questions, len(found.texts))
    _check_rows(found.right, len(found.answers))
    if min(found.width, found.height, found.columns) < 1 or min(found.tiles, default=0) < 0:
        raise ValueError("a picture without a size or place")
    image = base64.b64decode(found.sheet, validate=True)
    if found.tiles and (image[:4], image[8:12]) != (b"RIFF", b"WEBP"):
        raise ValueError("its sheet is no WebP image")


def _check_rows(rows: Sequence[int], count: int) -> None:
    if any(not 0 <= row < count for row in rows):
        raise ValueError("a question or answer that it does not list")
