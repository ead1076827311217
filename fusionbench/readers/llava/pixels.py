"""From a picture to the inputs of a vision tower.

pad        to a square with the mean colour `int(255 * mean)`, then resized: LLaVA-1.5 as published
           (Liu et al. 2024, arXiv:2310.03744, `image_aspect_ratio: pad`)
processor  the checkpoint's own image processor: for `llava-hf` short side resized and centre
           cropped, for LLaVA-NeXT and OneVision the whole picture and its tiles
squash     both sides resized, for encoders that come without a language model

All give whole grey levels; the encoder scales and normalises them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.encoders.preprocessing import Preprocessing
from fusionbench.encoders.vit import resize
from fusionbench.readers.llava.checkpoint import Checkpoint
from fusionbench.readers.llava.description import Description
from fusionbench.readers.llava.kinds import KINDS

PIXELS = ("pad", "processor")
_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class Views:
    """The inputs of the tower that one picture makes; the whole picture comes first."""

    images: UInt8[Tensor, "input size size 3"]
    size: tuple[int, int]
    """Height and width of the picture in pixels."""

    @property
    def whole(self) -> "Views":
        """Without tiles."""
        return Views(images=self.images[:1], size=self.size)

    @property
    def part(self) -> tuple[int, tuple[int, int]]:
        """(inputs, (height, width)), as `Checkpoint.image_tokens` takes it."""
        return len(self.images), self.size


class Reader(Protocol):
    """Makes the inputs of a tower from a PIL image in RGB."""

    def __call__(self, picture: Any) -> Views: ...


def reader(checkpoint: Checkpoint, pixels: str) -> Reader:
    """The function for `pad` or `processor`.

    Raises UserError for another word, and for `pad` of a checkpoint with tiles.
    """
    if pixels not in PIXELS:
        raise UserError(
            f"pixels must be {' or '.join(PIXELS)}, got {pixels!r}{did_you_mean(pixels, PIXELS)}"
        )
    about = checkpoint.about
    if pixels == "processor":
        return lambda picture: processed(picture, checkpoint.image_processor)
    if about.tiled:
        raise UserError(
            f"{about.name}: {about.cls} cuts pictures into tiles and pads them in its own way",
            "use pixels processor",
        )
    return lambda picture: padded(picture, about.images, size=about.encoder.size)


def row(pictures: Sequence[Any], read: Reader, about: Description) -> list[Views]:
    """The views of all pictures of a row.

    OneVision tiles a picture only where it is alone in its row.
    """
    views = [read(picture) for picture in pictures]
    alone = len(pictures) == 1 or KINDS[about.kind].tiles_several
    return views if alone else [one.whole for one in views]


def padded(picture: Any, images: Preprocessing, *, size: int) -> Views:
    """One square view: the picture in the middle of a square of the mean colour, resized."""
    from PIL import Image

    width, height = picture.size
    longest = max(width, height)
    # Truncated, not rounded, as published.
    colour = tuple(int(_LEVELS * mean) for mean in images.mean)
    square = Image.new("RGB", (longest, longest), colour)
    square.paste(picture.convert("RGB"), ((longest - width) // 2, (longest - height) // 2))
    resample = Image.Resampling[images.interpolation.upper()]
    levels = np.asarray(square.resize((size, size), resample))
    return Views(images=torch.tensor(levels)[None], size=(height, width))


def processed(picture: Any, processor: Any) -> Views:
    """The views that an image processor of transformers makes, before it scales and normalises.

    Raises UserError for a processor whose output is not whole grey levels.
    """
    made = processor(
        images=picture.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt"
    )
    values = made["pixel_values"].flatten(0, -4)
    levels = values.round()
    if float((values - levels).abs().max()) > 1e-3 or not 0 <= levels.min() <= levels.max() <= 255:
        raise UserError(
            f"{type(processor).__name__} changes pixel values in another way than scaling and "
            "normalising, which is not supported"
        )
    return Views(
        images=levels.to(torch.uint8).movedim(1, -1).contiguous(),
        size=(picture.height, picture.width),
    )


def squashed(picture: Any, encoder: Encoder) -> Views:
    """One view with both sides resized to the encoder's input, by its own interpolation.

    Raises UserError for an encoder that crops.
    """
    own = getattr(encoder, "images", Preprocessing())
    if own.fit != "squash":
        raise UserError(f"this encoder reads images with fit {own.fit}, not squash")
    levels = torch.tensor(np.asarray(picture.convert("RGB")))[None]
    images = resize(levels, encoder.size, interpolation=own.interpolation)
    return Views(images=images, size=(picture.height, picture.width))
