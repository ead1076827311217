"""Batches of rows: encoded text, images and their hidden states, what a fusion sees of the text.

Pillow decodes and resizes without the interpreter's lock, so threads use as many cores.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.benchmarks import Picture
from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import one_of
from fusionbench.api.fusion import Tap
from fusionbench.api.seeding import stream
from fusionbench.harness.stepping import States
from fusionbench.models.encoders import features
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.readers.labels import EncodedRow
from fusionbench.models.readers.llava.description import Pair
from fusionbench.models.readers.llava.pixels import Views
from fusionbench.records.cell import PIXELS
from fusionbench.vlm.rows import Cached, TrainingRow

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = UInt8[np.ndarray, "height width 3"]
T = TypeVar("T")
THREADS = 4
MOST = 256
"""Images that are read ahead at the same time; 256 photographs of 640 x 480 are 240 MB."""


class ReadAhead(Generic[T]):
    """Reads the images that were announced, in their order, before they are asked for.

    `T`: what is read of an image, for example its pixels.
    """

    def __init__(
        self, read: Callable[[Picture], T], *, threads: int = THREADS, most: int = MOST
    ) -> None:
        """`most`: images that wait at a time; what is announced beyond is read when asked for."""
        self._read = read
        self._most = most
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="pictures")
        self._waiting: dict[_Key, Future[T]] = {}
        self._lock = threading.Lock()

    def expect(self, pictures: Iterable[Picture]) -> None:
        """Announce images of the coming steps; those that wait already are left as they are."""
        with self._lock:
            for picture in pictures:
                key = _key(picture)
                if key not in self._waiting and len(self._waiting) < self._most:
                    self._waiting[key] = self._pool.submit(self._read, picture)

    def __call__(self, picture: Picture) -> T:
        """What is read of an image, announced or not. Raises what reading it raised."""
        with self._lock:
            waiting = self._waiting.pop(_key(picture), None)
        return self._read(picture) if waiting is None else waiting.result()

    def drop(self) -> None:
        """Drop the images that wait."""
        with self._lock:
            for waiting in self._waiting.values():
                waiting.cancel()
            self._waiting.clear()

    def close(self) -> None:
        """Read no more; images that wait are dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()


_Key = tuple[str, Path | None]


def _key(picture: Picture) -> _Key:
    """Name and file: two folders may have images of one name."""
    return picture.name, picture.content if isinstance(picture.content, Path) else None


def pixels(picture: Picture, fit: str, mean: tuple[float, float, float]) -> Pixels:
    """Grey levels of an image, padded to a square with the mean colour where `fit` is `pad`.

    `mean` is the encoder's per channel, 0 to 1. The encoder resizes and normalises. Raises
    UserError for what is no image, ValueError for an unknown fit.
    """
    one_of("pixels", fit, PIXELS)
    image = picture.open()
    return np.asarray(padded(image, mean) if fit == "pad" else image)


def padded(image: "Image", mean: tuple[float, float, float]) -> "Image":
    """The image in the middle of a square of the colour `int(255 * mean)`, as LLaVA-1.5 does.

    An odd remainder is one pixel more below, or on the right. Reference: `expand2square` of
    haotian-liu/LLaVA (c121f04).
    """
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


ImageSource = Picture | Cached


@dataclass(frozen=True, kw_only=True)
class BatchImages:
    """The images of a batch."""

    states: States
    """Gives the hidden states of all inputs of the encoder, in order."""
    pictures: tuple[tuple[int, Pair], ...]
    """(inputs of the encoder, (height, width) in pixels) of each image."""


@dataclass(kw_only=True)
class ImageStates:
    """Hidden states of any images."""

    keys: Mapping[str, FeatureKey]
    """Task -> key of its cached hidden states."""
    encoder: Encoder
    pixels: ReadAhead[Pixels] | ReadAhead[Views]
    """Reads an image: its pixels, or the inputs of the encoder that it makes."""
    device: torch.device
    several: ReadAhead[Views] | None = None
    """Reads an image of a row with several; None: as any other."""
    _open: dict[tuple[str, Tap], Float[Tensor, "image token dim"]] = field(
        init=False, default_factory=dict
    )

    def of(self, images: Sequence[ImageSource]) -> States:
        """Gives the states of these images, in order, in float32; of none, those of a blank."""
        return self.shown([(image,) for image in images]).states

    def shown(self, rows: Sequence[Sequence[ImageSource]]) -> BatchImages:
        """The images of these rows, in order; of no image at all, the states of a blank."""
        if not any(rows):
            return BatchImages(states=blank(self.encoder, self.device), pictures=())
        images = [image for row in rows for image in row]
        views = [self._viewed(image, len(row)) for row in rows for image in row]
        size = (self.encoder.size, self.encoder.size)
        pictures = tuple((1, size) if view is None else view.part for view in views)
        running = encoded(self.encoder, [one for view in views if view for one in self._on(view)])
        starts = list(accumulate((inputs for inputs, _ in pictures), initial=0))
        places: dict[str, list[int]] = {}
        for image, first, (inputs, _) in zip(images, starts[:-1], pictures, strict=True):
            task = image.task if isinstance(image, Cached) else ""
            places.setdefault(task, []).extend(range(first, first + inputs))
        cached = {
            task: [one.row for one in images if isinstance(one, Cached) and one.task == task]
            for task in places
        }
        gather = partial(self._gathered, running, places, cached, starts[-1])
        return BatchImages(states=gather, pictures=pictures)

    def expect(self, images: Sequence[ImageSource]) -> None:
        """Announce the images of a row of the coming steps."""
        self._reading(len(images)).expect(one for one in images if isinstance(one, Picture))

    def drop(self) -> None:
        """Drop the images that were announced and not asked for."""
        self.pixels.drop()
        if self.several is not None:
            self.several.drop()

    def _gathered(
        self,
        running: States,
        places: Mapping[str, Sequence[int]],
        cached: Mapping[str, Sequence[int]],
        count: int,
        taps: tuple[Tap, ...],
    ) -> Float[Tensor, "tap batch token dim"]:
        shape = self.encoder.shape
        found = torch.empty((len(taps), count, shape.tokens, shape.dim), device=self.device)
        for task, spots in places.items():
            if task:
                rows = torch.tensor(cached[task])
                part = torch.stack([self._stored(task, tap)[rows] for tap in taps])
            else:
                part = running(taps)
            found[:, torch.tensor(spots)] = part.to(self.device, torch.float32)
        return found

    def _reading(self, images: int) -> ReadAhead[Pixels] | ReadAhead[Views]:
        return self.several if self.several is not None and images > 1 else self.pixels

    def _viewed(self, image: ImageSource, images: int) -> Views | None:
        """The inputs that an image makes; None if its states are cached."""
        if isinstance(image, Cached):
            return None
        read = self._reading(images)(image)
        if isinstance(read, Views):
            return read
        height, width, _ = read.shape
        return Views(images=torch.from_numpy(np.array(read))[None], size=(height, width))

    def _on(self, view: Views) -> Sequence[UInt8[Tensor, "1 height width 3"]]:
        return torch.split(view.images.to(self.device), 1)

    def _stored(self, task: str, tap: Tap) -> Float[Tensor, "image token dim"]:
        if (task, tap) not in self._open:
            self._open[task, tap] = features.read(self.keys[task], tap)
        return self._open[task, tap]


def encoded(encoder: Encoder, images: Sequence[UInt8[Tensor, "1 height width 3"]]) -> States:
    """Gives the states of images of any sizes; the encoder runs as far as the taps need."""

    @torch.no_grad()
    def run(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        sources = {index: encoder.shape.source(index) for tap in taps for index in tap}
        states = {0: torch.cat([encoder.embed(image) for image in images])}
        for index in range(1, max(layer for layer, _ in sources.values()) + 1):
            states[index] = encoder.block(index, states[index - 1])
        found = {
            index: encoder.norm(states[layer]) if normed else states[layer]
            for index, (layer, normed) in sources.items()
        }
        return torch.stack(
            [torch.stack([found[index].float() for index in tap]).mean(dim=0) for tap in taps]
        )

    return run


def blank(encoder: Encoder, device: torch.device) -> States:
    """The states of one image that is no image: fixed numbers of unit scale.

    A batch of text alone runs a fusion on them times 0, so that every process has its gradients.
    """
    count = encoder.shape.tokens * encoder.shape.dim
    values = torch.sin(torch.arange(1, count + 1, device=device, dtype=torch.float32))

    def run(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        return values.reshape(1, 1, encoder.shape.tokens, -1).expand(len(taps), 1, -1, -1)

    return run


Encode = Callable[[TrainingRow], EncodedRow]
"""The text of a row as ids."""
KNOWN = 16_384
"""Encoded texts kept in memory, at most: files of conversations have hundreds of thousands."""


class Rows(Protocol):
    """Rows by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> TrainingRow:
        """One row."""


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Rows that go through a model together."""

    rows: tuple[EncodedRow, ...]
    owners: tuple[int, ...]
    """The row of each image, in the order of the rows."""
    states: States
    """Gives the hidden states of all images; of a batch of text alone, of one blank image."""
    queries: tuple[Sequence[int], ...]
    """Ids of each row's query; its own, or those of another row (`question=shuffled`)."""
    answers: tuple[Sequence[int], ...]
    """Ids of each row's answer, for a summary and for methods that read answers; empty where an
    answer is asked for."""
    pictures: tuple[tuple[int, Pair], ...] = ()
    """(inputs of the encoder, (height, width) in pixels) of each image; empty: one input each."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def asking(self) -> tuple[int, ...]:
        """The row of each input of the encoder."""
        pairs = zip(self.owners, self.parts, strict=True)
        return tuple(owner for owner, (inputs, _) in pairs for _ in range(inputs))

    @property
    def parts(self) -> list[tuple[int, Pair]]:
        """`pictures`, or one input of no size for each image."""
        return list(self.pictures) or [(1, (0, 0))] * len(self.owners)

    @property
    def shows(self) -> bool:
        """Whether any row has an image."""
        return bool(self.owners)


class Strangers:
    """Of each row one drawn from all rows, whose query its fusion sees (`question=shuffled`).

    They are permuted at random, so about one row keeps its own.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        """`seed`: draws one permutation of all rows, so the size of a batch changes nothing."""
        self._rows = rows
        self._others = stream("vlm", "strangers", seed).permutation(len(rows))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._others)

    def __getitem__(self, index: int) -> TrainingRow:
        """The row that was drawn for row `index`."""
        return self._rows[int(self._others[index])]


class Batches:
    """Makes batches of rows by their numbers; the encoded texts of the last `KNOWN` are kept."""

    def __init__(
        self, rows: Rows, encode: Encode, states: ImageStates, *, asked: Rows | None = None,
        files: bool = False,
    ) -> None:  # fmt: skip
        """`asked`: for each row the one whose query the fusion sees; None: the row itself.

        `files`: whether some rows have images in files, which are worth reading ahead.
        """
        self.rows = rows
        self._encode = encode
        self._states = states
        self._known: dict[object, EncodedRow] = {}
        self._files = files
        self._asked = asked

    def encoded(self, row: TrainingRow) -> EncodedRow:
        """The text of a row as ids."""
        key = (row.turns, row.later)
        if key not in self._known:
            if len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._encode(row)
        return self._known[key]

    def labelled(self, index: int) -> int:
        """Number of labelled tokens of a row."""
        return sum(self.encoded(self.rows[index]).labelled)

    def expect(self, indices: Iterable[int]) -> None:
        """Announce rows of the coming steps: their images are read ahead."""
        if self._files:
            for index in indices:
                self._states.expect(self.rows[int(index)].images)

    def fetch(self, indices: Sequence[int]) -> RowBatch:
        """These rows as a batch."""
        rows = [self.rows[index] for index in indices]
        encoded = tuple(map(self.encoded, rows))
        seen: Iterable[EncodedRow] = encoded
        if self._asked is not None:
            seen = [self.encoded(self._asked[index]) for index in indices]
        shown = self._states.shown([row.images for row in rows])
        return RowBatch(
            rows=encoded,
            owners=tuple(at for at, row in enumerate(rows) for _ in row.images),
            states=shown.states,
            pictures=shown.pictures,
            queries=tuple(row.query_ids for row in seen),
            answers=tuple(answer_ids(row) for row in encoded),
        )


def answer_ids(row: EncodedRow) -> tuple[int, ...]:
    """The labelled ids."""
    return tuple(one for one, labelled in zip(row.ids, row.labelled, strict=True) if labelled)
