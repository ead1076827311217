"""Images of the coming steps, read and made square ahead of the training by a few threads.

Pillow decodes and resizes without the interpreter's lock, so threads use as many cores. No torch.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import one_of
from fusionbench.records.cell import PIXELS

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
        self._waiting: dict[str, Future[T]] = {}
        self._lock = threading.Lock()

    def expect(self, pictures: Iterable[Picture]) -> None:
        """Announce images of the coming steps; those that wait already are left as they are."""
        with self._lock:
            for picture in pictures:
                if picture.name not in self._waiting and len(self._waiting) < self._most:
                    self._waiting[picture.name] = self._pool.submit(self._read, picture)

    def __call__(self, picture: Picture) -> T:
        """What is read of an image, announced or not. Raises what reading it raised."""
        with self._lock:
            waiting = self._waiting.pop(picture.name, None)
        return self._read(picture) if waiting is None else waiting.result()

    def close(self) -> None:
        """Read no more; images that wait are dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()


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
