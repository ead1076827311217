"""Images of the coming steps, read and made square ahead of the training by a few threads.

Pillow decodes and resizes without the interpreter's lock, so threads use as many cores. No torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import UInt8

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import one_of

if TYPE_CHECKING:
    from PIL.Image import Image

Read = TypeVar("Read")
Item = TypeVar("Item")
Pixels = UInt8[np.ndarray, "height width 3"]
FITS = ("squash", "pad", "processor")
"""How an image becomes the encoder's input.

squash      both sides are resized
pad         the short side is filled with the mean colour, then resized (LLaVA-1.5's training)
processor   the checkpoint's own image processor; CLIP's cuts the centre out
"""
THREADS = 4
STEPS_AHEAD = 2


def ahead(
    steps: Iterable[Sequence[Item]],
    read: Callable[[Item], Read],
    *,
    threads: int = THREADS,
    depth: int = STEPS_AHEAD,
) -> Iterator[list[Read]]:
    """`read` of each item, step by step and in order, `depth` steps ahead of the consumer.

    An error of `read` is raised in the step of its item, and of several that of the first item.
    """
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="pictures") as pool:
        waiting: deque[list[Future[Read]]] = deque()
        try:
            for step in steps:
                waiting.append([pool.submit(read, item) for item in step])
                if len(waiting) > depth:
                    yield [future.result() for future in waiting[0]]
                    waiting.popleft()
            while waiting:
                yield [future.result() for future in waiting[0]]
                waiting.popleft()
        finally:
            # After an error, or where the consumer stops early, nothing more is read.
            for future in (one for step in waiting for one in step):
                future.cancel()


def pixels(picture: Picture, fit: str, mean: tuple[float, float, float]) -> Pixels:
    """Grey levels of an image, padded to a square with the mean colour where `fit` is `pad`.

    `mean` is the encoder's per channel, 0 to 1. The encoder resizes and normalises. Raises
    UserError for what is no image, ValueError for an unknown fit.
    """
    one_of("pixels", fit, FITS)
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
