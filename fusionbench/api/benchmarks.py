"""Contract of a benchmark: questions about images, scored from the text of each answer.

A benchmark is evaluated and never trained on. Free of torch and of image libraries until an image
is opened.
"""

import hashlib
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import UserError
from fusionbench.api.sources import Needs, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_BLOCK = 1 << 20


class Encoded(Protocol):
    """An encoded image that is read on demand. Picklable."""

    def read(self) -> bytes:
        """The bytes of its file format. Raises UserError if they cannot be read."""
        ...


class Tallied(Protocol):
    """Counts of each answer whose sums give measures that are no mean of outcomes."""

    @property
    def counts(self) -> Float[np.ndarray, "answer count"]:
        """Counts of each answer."""
        ...

    @property
    def readings(
        self,
    ) -> Callable[[Float[np.ndarray, "*draw count"]], Mapping[str, Float[np.ndarray, "*draw"]]]:
        """Sums of counts -> measures by name."""
        ...


def require_8_bits(image: "Image") -> None:
    """Raise ValueError for Pillow's modes of 16 and 32 bits, which `convert` cuts off at 255."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); save it with 8")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image: a file, its bytes, a place to read them from, or a decoded image."""

    name: str
    """File or item, as errors name it."""
    content: "Path | bytes | Encoded | Image"
    key: str = ""
    """Equal for equal images of one source: the file's name, or a hash of its bytes."""

    def open(self) -> "Image":
        """The decoded RGB image. Raises UserError for what is no image."""
        import io

        from PIL import Image

        source = self.content
        if isinstance(source, Path) and not source.is_file():
            raise UserError(f"{self.name}: there is no image {source}", "restore the file")
        try:
            if isinstance(source, Image.Image):
                require_8_bits(source)
                return source.convert("RGB")
            with Image.open(
                source if isinstance(source, Path) else io.BytesIO(self.encoded())
            ) as it:
                require_8_bits(it)
                return it.convert("RGB")
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as no:
            raise UserError(
                f"{self.name} is not an image that can be read: {_reason(no)}",
                "allowed: JPEG, PNG and the other formats of Pillow",
            ) from no

    def encoded(self) -> bytes:
        """Its bytes as stored; of a decoded image its pixels. Raises UserError."""
        source = self.content
        if isinstance(source, bytes):
            return source
        if isinstance(source, Path):
            return source.read_bytes()
        return source.tobytes() if hasattr(source, "tobytes") else source.read()

    def size(self) -> int:
        """Number of bytes as stored. Raises UserError for a file that is not there."""
        if not isinstance(self.content, Path):
            return len(self.encoded())
        try:
            return self.content.stat().st_size
        except OSError as error:
            raise UserError(f"{self.name}: there is no image {self.content}") from error


def _reason(error: Exception) -> str:
    """The error's text without the address of a buffer."""
    text = str(error)
    return "no known image format" if "cannot identify" in text else text


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with what its answer is scored against."""

    name: str
    """Unique within the benchmark; holds the source's own id."""
    group: str
    """The question's image or images: questions with the same images share it."""
    options: tuple[str, ...] = ()
    """Texts of the choices, in the order of their letters."""
    gold: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that `judge` and `measures` read, the true answer among them."""


@dataclass(frozen=True, kw_only=True)
class Item(Asked):
    """One question of a benchmark."""

    images: tuple[Picture, ...]
    """In order, in front of the prompt; empty for a question without an image."""
    prompt: str
    """Full text that is asked, with options and the benchmark's suffix, without image marks."""
    question: str
    """The question alone: the query of a fusion."""


@dataclass(frozen=True, kw_only=True)
class Answer(Asked):
    """The text that a model gave to an item, and its outcome."""

    text: str
    """Without white space around it."""
    outcome: float = 0.0
    """0 to 1."""
    ranked: int | None = None
    """Index of the option with the smallest loss, where options were ranked."""


class Benchmark(ABC):
    """One benchmark; its `@benchmark(...)` line has the registered name and version.

    Class attributes are literals: `list tasks` reads them without an import.
    """

    metric: str = "accuracy"
    """Name of the headline metric, the mean outcome."""
    chance: float = 0.0
    """Expected score of a guesser on questions without options."""
    max_new_tokens: int = 128
    ranks_options: bool = False
    """Also rank the options by the loss of each as the answer to `Item.question` alone."""
    folder: str = ""
    files: Mapping[str, str] = {}
    tsv: str = ""
    hub: Mapping[str, str] = {}

    @property
    def needs(self) -> Needs:
        """The forms of its data."""
        return Needs(folder=self.folder, files=self.files, tsv=self.tsv, hub=self.hub)

    def annotations(self, source: Source) -> Sequence[Path]:
        """Files whose bytes are part of `data_hash`; none for a set of the hub."""
        return source.files

    @abstractmethod
    def items(self, source: Source) -> Iterator[Item]:
        """The questions in the order of the source, one at a time, images unopened.

        Raises UserError with file and line (or item) for data that breaks the form.
        """

    @abstractmethod
    def judge(self, text: str, item: Asked) -> float:
        """Outcome of a text answer, 0 to 1."""

    def outcomes(self, answers: Sequence[Answer]) -> list[float]:
        """Outcome of each answer; of all, in order, for metrics with draws in file order."""
        return [self.judge(answer.text, answer) for answer in answers]

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Named readings of all answers, None where undefined; by default the mean outcome."""
        return {self.metric: sum(one.outcome for one in answers) / len(answers)}

    def tally(self, answers: Sequence[Answer]) -> Tallied | None:
        """Counts for a bootstrap over images; None where no measure needs one."""
        return None

    def guessing(self, items: Sequence[Asked]) -> float:
        """Chance on these questions: 1 / number of options, `chance` where there are none."""
        each = [1 / len(one.options) if one.options else self.chance for one in items]
        return sum(each) / len(each)


def answer_to(item: Item, text: str, ranked: int | None) -> Answer:
    """A text as the answer to an item, without an outcome yet."""
    return Answer(
        name=item.name, group=item.group, options=item.options, gold=item.gold, text=text,
        ranked=ranked,
    )  # fmt: skip


def with_outcomes(benchmark: Benchmark, answers: Sequence[Answer]) -> list[Answer]:
    """The answers with their outcomes."""
    outcomes = benchmark.outcomes(answers)
    return [
        replace(one, outcome=float(outcome)) for one, outcome in zip(answers, outcomes, strict=True)
    ]


def stream(benchmark: Benchmark, source: Source) -> Iterator[Item]:
    """The items of a source, checked. Raises UserError for none, a name twice, an empty prompt."""
    seen: set[str] = set()
    for item in benchmark.items(source):
        if item.name in seen:
            raise UserError(f"{source.root}: item {item.name!r} twice", "ids must be unique")
        if not item.prompt.strip() or not item.question.strip():
            raise UserError(f"{source.root}: item {item.name!r} has no question")
        seen.add(item.name)
        yield item
    if not seen:
        raise UserError(f"{source.root}: holds no question", "the file may be truncated")


def data_hash(benchmark: Benchmark, source: Source) -> str:
    """SHA-256 of annotation files, of the items, and of names and sizes of the images.

    A TSV that holds its images is hashed as a file only; a set of the hub has no annotation files.
    Raises UserError as `stream` does.
    """
    digest = hashlib.sha256(source.form.encode())
    for file in benchmark.annotations(source):
        digest.update(_line(file.relative_to(_base(source)).as_posix(), file.stat().st_size))
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    if source.form != "tsv" or not _holds_images(benchmark, source):
        for item in stream(benchmark, source):
            for line in _lines_of(item):
                digest.update(line)
    return digest.hexdigest()


def _base(source: Source) -> Path:
    return source.root.parent if source.form == "tsv" else source.root


def _holds_images(benchmark: Benchmark, source: Source) -> bool:
    """Whether the images are in the file itself, by the first one."""
    pictures = (picture for item in benchmark.items(source) for picture in item.images)
    first = next(pictures, None)
    return first is not None and not isinstance(first.content, Path)


def _lines_of(item: Item) -> Iterator[bytes]:
    yield _line(item.name, item.prompt, item.options, dict(item.gold))
    for picture in item.images:
        yield _line(picture.name, picture.size())


def _line(*values: object) -> bytes:
    return json.dumps(values, sort_keys=True).encode() + b"\n"
