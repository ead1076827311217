"""A task of one's own images: folders of classes, or a table of image, question, answer, split.

DIR/CLASS/*.png                 one question, the class is the answer; splits are dealt
DIR/{train,val,test}/CLASS/*    the same with splits of one's own
DIR/questions.csv               (or .jsonl) columns image, question, answer and perhaps split

Nothing here depends on where the folder lies: names are relative to it, and splits are dealt by the
pixels. Free of torch.
"""

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.benchmarks import require_8_bits
from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.api.tasks import SPLITS, Split, SplitName, Task, TaskData

SIDE = 224
"""Pixels of the longest side where images are made alike."""
QUESTION = "which class is this?"
"""The question about each image of a class folder."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_OTHERS = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".pdf", ".psd", ".npy", ".mp4")
TABLES = ("questions.csv", "questions.jsonl")
_COLUMNS = ("image", "question", "answer")
_SPLIT_NAMES: Mapping[str, SplitName]
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""In any case; of folders and in tables."""
_LEAST = 5
"""Images of a class whose splits are dealt: three to train on, one each to choose and to test."""
_DEALT: Sequence[SplitName] = ("train", "test", "train", "val", "train")
_DEALT_VAL: Sequence[SplitName] = ("train", "train", "val", "train", "train")
"""Splits of the images of an answer in turn; the second where train and test are named."""
_GREY = (128, 128, 128)
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
"""The tag of EXIF, and its values for a camera that was held on its side."""
Pixels = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One question about one image."""

    image: str
    """Its file below the folder of images."""
    question: str
    answer: str
    split: str
    """Empty where the splits are dealt."""
    where: str
    """File and line, for errors."""


class FolderTask(Task):
    """A task of the images in a folder; a subclass names the folder and its chance score."""

    images: str = ""
    """Folder of the images."""
    questions: str = ""
    """The table; empty: `questions.csv` or `questions.jsonl` of the folder, or class folders."""
    side: int = SIDE
    """Pixels of the longest side where images differ in size or are larger."""
    place: str = ""
    """A file beside a JSON file of its name that holds `folder`, where `images` is empty."""

    def load(self) -> TaskData:
        """Read table and images. Raises UserError that names the file and line of what is wrong."""
        folder = Path(self.images or self._noted()).expanduser()
        return read_images(folder, read_rows(folder, self.questions), side=self.side)

    def _noted(self) -> str:
        file = Path(self.place).with_suffix(".json")
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{file} does not say where the images are", "run `--tasks folder:DIR` again"
            ) from error


def read_rows(folder: Path, table: str = "") -> list[ImageRow]:
    """The questions of a folder in order. Raises UserError for what cannot be used."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "name the folder that holds the images")
    file = Path(table).expanduser() if table else _own_table(folder)
    rows = list(_of_classes(folder) if file is None else _of_table(folder, file))
    if not rows and file is not None:
        raise UserError(f"{file} has no row", "a row has image, question and answer")
    if not rows:
        raise UserError(f"{folder} has no image", f"images end in {', '.join(ENDINGS)}")
    _require_once(rows)
    return rows


def _own_table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _of_classes(folder: Path) -> Iterator[ImageRow]:
    """Rows of class folders, in splits or not."""
    homes = _folders(folder)
    if not homes:
        raise UserError(
            f"{folder} has no folder of a class and no {TABLES[0]}",
            "put the images of each class into a folder named like it, or write a table with "
            "the columns image, question, answer",
        )
    splits = {home.name: _SPLIT_NAMES.get(home.name.lower(), "") for home in homes}
    if all(splits.values()):
        for home in homes:
            for place in _folders(home):
                yield from _of_class(folder, place, splits[home.name])
        return
    _require_no_splits(homes, splits)
    for place in homes:
        yield from _of_class(folder, place, "")


def _folders(place: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and what macOS adds to archives."""
    found = [path for path in sorted(place.iterdir()) if path.is_dir()]
    return [path for path in found if path.name[0] != "." and path.name != "__MACOSX"]


def _require_no_splits(homes: Sequence[Path], splits: Mapping[str, str]) -> None:
    """Raise UserError where folders of splits lie beside others, or seem to have other names."""
    named = [home for home in homes if splits[home.name] and _folders(home)]
    if len(named) > 1:
        other = next(home for home in homes if not splits[home.name])
        raise UserError(
            f"{other} lies beside the splits {' and '.join(home.name for home in named)}, but is "
            "no split",
            f"move it away; splits are named {', '.join(_SPLIT_NAMES)}",
        )
    inside = [[place.name for place in _folders(home)] for home in homes]
    if len(homes) > 1 and inside[0] and all(names == inside[0] for names in inside):
        what = f"{' and '.join(home.name for home in homes)} have the same folders: as splits?"
        raise UserError(what, f"splits are named {', '.join(_SPLIT_NAMES)}")


def _of_class(folder: Path, place: Path, split: str) -> Iterator[ImageRow]:
    """The images of a class. Raises UserError for none and for images that cannot be read."""
    files = [file for file in sorted(place.rglob("*")) if not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    other = [file for file in files if file.suffix.lower() in _OTHERS]
    if other or not images:
        what = f"{other[0]} is no image that can be read" if other else f"{place} has no image"
        raise UserError(what, f"convert or remove it; images end in {', '.join(ENDINGS)}")
    for file in images:
        name, of = file.relative_to(folder).as_posix(), place.name
        yield ImageRow(image=name, question=QUESTION, answer=of, split=split, where=str(file))


def _of_table(folder: Path, file: Path) -> Iterator[ImageRow]:
    """Rows of a table. Raises UserError with the line of a value that is missing or wrong."""
    for line, values in _lines(file):
        where = f"{file}:{line}"
        image, question, answer = (_value(values, name, where) for name in _COLUMNS)
        split = str(values.get("split") or "").strip()
        if split and split.lower() not in _SPLIT_NAMES:
            raise UserError(
                f"{where}: no split {split!r}{did_you_mean(split, _SPLIT_NAMES)}",
                "train, val or test, or no column `split`: then splits are dealt",
            )
        if not (folder / image).is_file():
            raise UserError(f"{where}: there is no image {folder / image}", "restore the file, or "
                            "name images relative to the folder of images")  # fmt: skip
        yield ImageRow(
            image=image, question=question, answer=answer,
            split=_SPLIT_NAMES[split.lower()] if split else "", where=where,
        )  # fmt: skip


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and values of each row of a CSV or JSONL file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "name a CSV or JSONL file"
        raise UserError(f"{file} cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8"
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}", hint) from error
    if file.suffix.lower() == ".csv":
        yield from _of_csv(file, text)
        return
    # Not `splitlines`: a text may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _object(line, f"{file}:{number}")


def _of_csv(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and values of each row. Raises UserError for one with more or fewer fields."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        _require_names(header, f"{file}:1")
        _require_columns(header, f"{file}:1")
        for fields in filter(None, reader):
            if len(fields) != len(header):
                raise UserError(
                    f"{file}:{reader.line_num}: {len(fields)} fields, the header has {len(header)}",
                    f"a text with a comma needs quotes; the columns are: {', '.join(header)}",
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        hint = "a text with a comma or quotes stands in quotes, and quotes inside it are doubled"
        raise UserError(f"{file}:{reader.line_num}: not CSV: {error}", hint) from error


def _require_names(names: Sequence[str], where: str) -> None:
    """Raise UserError for a name that occurs twice; empty columns have none."""
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{where}: {twice[0]!r} occurs twice", "remove one of the two")


def _require_columns(header: Sequence[str], where: str) -> None:
    """Raise UserError for a header without a column that each row needs."""
    for name in _COLUMNS:
        if name not in header:
            has = ", ".join(header)
            hint = "separate fields by commas" if len(header) == 1 else f"it has: {has}"
            raise UserError(f"{where}: no column {name!r}{did_you_mean(name, header)}", hint)


def _object(line: str, where: str) -> dict[str, Any]:
    hint = 'each line is an object: {"image": "a.png", "question": "...", "answer": "..."}'

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_names([name for name, _ in pairs], where)
        return dict(pairs)

    try:
        values = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}", hint) from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: not an object", hint)
    return values


def _value(values: Mapping[str, Any], name: str, where: str) -> str:
    if name not in values:
        near = did_you_mean(name, [str(key) for key in values])
        has = ", ".join(str(key) for key in values)
        raise UserError(f"{where}: no column {name!r}{near}", f"it has: {has}")
    if isinstance(values[name], list | dict):
        raise UserError(f"{where}: {name} must be a text, got {values[name]!r:.80}", "one a row")
    if not (found := str("" if values[name] is None else values[name]).strip()):
        raise UserError(f"{where}: {name} is empty", "each row needs image, question and answer")
    return found


def _require_once(rows: Sequence[ImageRow]) -> None:
    """Raise UserError for a question that is asked twice of one image."""
    seen: dict[tuple[str, str], ImageRow] = {}
    for row in rows:
        first = seen.setdefault((row.image, row.question), row)
        if first is not row:
            other = "" if first.answer == row.answer else f", answered {first.answer!r} there"
            raise UserError(
                f"{row.where}: {row.question!r} about {row.image} stands in {first.where} "
                f"already{other}",
                "remove one of the two rows",
            )


def read_images(folder: Path, rows: Sequence[ImageRow], *, side: int = SIDE) -> TaskData:
    """The data of these questions. Raises UserError for broken images and unusable splits.

    Images of one size and at most `side` pixels stay as they are; all others are resized to `side`
    at the longest side and padded with grey to squares.
    """
    pixels = _alike(folder, rows, side)
    # Equal pixels are one image, whatever its files are called.
    digests = {name: hashlib.sha256(one.tobytes()).hexdigest() for name, one in pixels.items()}
    _require_one_answer(rows, digests)
    images = {digests[name]: one for name, one in sorted(pixels.items())}
    order = sorted(images)
    number = {digest: index for index, digest in enumerate(order)}
    dealt = _dealt(rows, digests)
    answers = tuple(sorted({row.answer for row in rows}))
    if len(answers) < 2:
        raise UserError(f"{folder} has one answer only: {answers[0]!r}", "a task needs two or more")
    _require_seen(dealt)
    splits = {name: _split(name, dealt, digests, number, answers) for name in SPLITS}
    return TaskData(images=np.stack([images[one] for one in order]), answers=answers, **splits)


def _require_one_answer(rows: Sequence[ImageRow], digests: Mapping[str, str]) -> None:
    """Raise UserError for one question about copies of an image with two answers."""
    seen: dict[tuple[str, str], ImageRow] = {}
    for row in rows:
        first = seen.setdefault((digests[row.image], row.question), row)
        if first.answer != row.answer:
            raise UserError(
                f"{row.where}: {row.image} has the pixels of {first.image} ({first.where}), but "
                f"the answer to {row.question!r} is {row.answer!r} here and {first.answer!r} there",
                "leave one of the two out",
            )


def _alike(folder: Path, rows: Sequence[ImageRow], side: int) -> dict[str, Pixels]:
    """The pixels of each image, all of one size. Raises UserError that names broken files."""
    from PIL import Image, ImageOps

    first = {row.image: row for row in reversed(rows)}
    broken: dict[str, str] = {}
    sizes = dict(_tried(folder, first, _size, broken))
    pad = len(set(sizes.values())) > 1 or max(map(max, sizes.values()), default=0) > side

    def pixels(file: Path) -> Pixels:
        picture = _upright(file)
        if pad:
            how = Image.Resampling.BICUBIC
            picture = ImageOps.pad(picture, (side, side), method=how, color=_GREY)
        return np.asarray(picture, dtype=np.uint8)

    found = dict(_tried(folder, first, pixels, broken))
    if broken:
        more = f" (and {len(broken) - 1} more images)" if len(broken) > 1 else ""
        raise UserError(next(iter(broken.values())) + more, "restore it, or leave it out")
    return found


def _tried(
    folder: Path, rows: Mapping[str, ImageRow], read: Callable[[Path], Any], broken: dict[str, str]
) -> Iterator[tuple[str, Any]]:
    """What `read` gives for each image that is not broken; adds to `broken` what it raises."""
    for name, row in rows.items():
        file = folder / name
        if name in broken:
            continue
        try:
            found = read(file)
        # A broken file may raise anything, by its format.
        except Exception as error:
            at = f"{row.where}: " if row.where != str(file) else ""
            broken[name] = f"{at}{file} is no image that can be read: {error}"
            continue
        yield name, found


def _size(file: Path) -> tuple[int, int]:
    """Width and height as the picture is seen; its pixels are not read."""
    from PIL import Image

    with Image.open(file) as opened:
        turned = opened.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        return opened.size[::-1] if turned else opened.size


def _upright(file: Path) -> Any:
    """The picture in RGB, turned as its camera noted, on white where it is transparent."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        require_8_bits(opened)
        picture: Any = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def _dealt(rows: Sequence[ImageRow], digests: Mapping[str, str]) -> list[ImageRow]:
    """The rows with their splits: their own, or dealt by image so that each answer is in all.

    Raises UserError for an image in two splits, and for a class with too few images to deal.
    """
    given = {row.split for row in rows}
    if "" in given and len(given) > 1:
        row = next(row for row in rows if not row.split)
        raise UserError(f"{row.where}: split is empty, and other rows have one", "name it too")
    homes: dict[str, ImageRow] = {}
    for row in rows:
        first = homes.setdefault(digests[row.image], row)
        if first.split != row.split:
            raise UserError(
                f"{row.where}: {row.image} is in {row.split}, and the same image is in "
                f"{first.split} ({first.where})",
                "all questions about one image belong to one split",
            )
    if given == {""}:
        places = _places(homes, shares=_DEALT)
    elif {"train", "test"} <= given and "val" not in given:
        train = {key: row for key, row in homes.items() if row.split == "train"}
        places = _places(train, shares=_DEALT_VAL)
    elif missing := [name for name in SPLITS if name not in given]:
        raise UserError(
            f"the splits are {', '.join(sorted(given))}; {', '.join(missing)} is missing",
            "name train and test (val is then taken from train), or no split at all",
        )
    else:
        return list(rows)
    return [replace(r, split=places.get(digests[r.image], r.split)) for r in rows]


def _places(homes: Mapping[str, ImageRow], shares: Sequence[SplitName]) -> dict[str, str]:
    """A split for each image: `shares` in turn, answer by answer, in the order of the pixels."""
    members: dict[str, list[str]] = defaultdict(list)
    for digest in sorted(homes):
        members[homes[digest].answer].append(digest)
    places: dict[str, str] = {}
    for answer, group in members.items():
        row = homes[group[0]]
        if len(group) < _LEAST and row.question == QUESTION:
            raise UserError(
                f"{answer!r} has {len(group)} different images, such as {row.where}",
                f"a class needs {_LEAST} to be dealt to train, val and test; leave it out",
            )
        dealt = shares if len(group) >= _LEAST else shares[:1]
        places |= {digest: dealt[turn % len(dealt)] for turn, digest in enumerate(group)}
    return places


def _require_seen(rows: Sequence[ImageRow]) -> None:
    """Raise UserError for a split without rows, and for an answer that training does not have."""
    seen = {row.answer for row in rows if row.split == "train"}
    for name in SPLITS:
        here = [row for row in rows if row.split == name]
        if not here:
            raise UserError(
                f"no question falls to {name}: there are {len(rows)}",
                f"add rows: an answer with {_LEAST} images is dealt to all splits; or a column "
                "`split` with train, val and test",
            )
        if unseen := [row for row in here if row.answer not in seen]:
            raise UserError(
                f"{unseen[0].where}: the answer {unseen[0].answer!r} of the {name} split is never "
                f"seen in training ({len(unseen)} such rows)",
                "the answers are a closed set that is learned: add training rows, or leave it out",
            )


def _split(
    name: SplitName,
    rows: Sequence[ImageRow],
    digests: Mapping[str, str],
    number: Mapping[str, int],
    answers: Sequence[str],
) -> Split:
    """One split, in an order that its pixels and questions decide."""
    here = [row for row in rows if row.split == name]
    here.sort(key=lambda row: _drawn(digests[row.image], row.question))
    index = {answer: row for row, answer in enumerate(answers)}
    return Split(
        items=tuple(f"{row.image}: {row.question}" for row in here),
        images=np.array([number[digests[row.image]] for row in here]),
        questions=tuple(row.question for row in here),
        answers=np.array([index[row.answer] for row in here]),
    )


def _drawn(*names: str) -> str:
    """A text that depends on the names alone, to order by."""
    return hashlib.sha256("\x1f".join(names).encode()).hexdigest()


def guessed(data: TaskData) -> float:
    """What a guesser scores on test who knows how often each question has each answer.

    The commonest answer of training to the question, or to any question; at least the share of the
    commonest test answer.
    """
    of_question: dict[str, Counter[int]] = defaultdict(Counter)
    for question, answer in zip(data.train.questions, data.train.answers.tolist(), strict=True):
        of_question[question][answer] += 1
    overall = Counter(data.train.answers.tolist())
    pairs = list(zip(data.test.questions, data.test.answers.tolist(), strict=True))
    right = sum((of_question.get(q) or overall).most_common(1)[0][0] == a for q, a in pairs)
    commonest = Counter(answer for _, answer in pairs).most_common(1)[0][1]
    return max(right, commonest) / len(pairs)


def content_id(folder: Path, rows: Sequence[ImageRow]) -> str:
    """8 hexadecimal digits of the bytes of the images and of the questions about them."""
    files = {row.image: "" for row in rows}
    for name in files:
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    values = [[row.image, files[row.image], row.question, row.answer, row.split] for row in rows]
    return hashlib.sha256(json.dumps(sorted(values)).encode()).hexdigest()[:8]
