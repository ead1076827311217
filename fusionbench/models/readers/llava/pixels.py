"""From a picture to the inputs of a vision tower.

pad        to a square with the mean colour `int(255 * mean)`, then resized: LLaVA-1.5 as published
           (Liu et al. 2024, arXiv:2310.03744, `image_aspect_ratio: pad`)
processor  the checkpoint's own image processor: for `llava-hf` short side resized and centre
           cropped, for LLaVA-NeXT and OneVision the whole picture and its tiles
squash     both sides resized, for encoders that come without a language model

All give whole grey levels; the encoder scales and normalises them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.models.encoders.preprocessing import Preprocessing
from fusionbench.models.readers.llava.checkpoint import Checkpoint
from fusionbench.models.readers.llava.description import KINDS, Description
from fusionbench.records.cell import PIXELS

_PIXELS = tuple(name for name in PIXELS if name != "squash")
"""No checkpoint was trained on images whose sides were resized alone."""
_LEVELS = 255
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Views:
    """The inputs of the tower that one picture makes; the whole picture comes first."""

    images: UInt8[Tensor, "input size size 3"]
    size: tuple[int, int]
    """Height and width of the picture in pixels."""

    @property
    def part(self) -> tuple[int, tuple[int, int]]:
        """(inputs, (height, width)), as `Checkpoint.image_tokens` takes it."""
        return len(self.images), self.size


Reader = Callable[[Sequence[Any]], list[Views]]
"""Makes the inputs of a tower from the pictures of one row, PIL images."""


def reader(checkpoint: Checkpoint, pixels: str) -> Reader:
    """The function for `pad` or `processor`.

    Raises UserError for another word, and for `pad` of a checkpoint with tiles.
    """
    if pixels not in _PIXELS:
        near = did_you_mean(pixels, _PIXELS)
        raise UserError(f"pixels must be {' or '.join(_PIXELS)}, got {pixels!r}{near}")
    about = checkpoint.about
    if pixels == "processor":
        return partial(_row, processor=checkpoint.image_processor, about=about)
    if about.tiled:
        raise UserError(
            f"{about.name}: {about.cls} cuts pictures into tiles and pads them in its own way",
            "use pixels processor",
        )
    size = about.encoder.size
    return lambda pictures: [padded(picture, about.images, size=size) for picture in pictures]


def _row(pictures: Sequence[Any], *, processor: Any, about: Description) -> list[Views]:
    if len(pictures) < 2 or KINDS[about.kind].tiles_several:
        return [view for picture in pictures for view in processed([picture], processor)]
    # OneVision pads and does not tile a picture that is not alone in its row.
    return processed(pictures, processor)


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


def processed(pictures: Sequence[Any], processor: Any) -> list[Views]:
    """The views that an image processor of transformers makes, before it scales and normalises.

    Several pictures are given as those of one row. Raises UserError for a processor whose output
    is not whole grey levels.
    """
    images = [picture.convert("RGB") for picture in pictures]
    given = [images] if len(images) > 1 else images
    made = processor(images=given, do_rescale=False, do_normalize=False, return_tensors="pt")
    values = made["pixel_values"]
    levels = values.round()
    off = float((values - levels).abs().max())
    if off > _ROUNDING or not 0 <= int(levels.min()) <= int(levels.max()) <= _LEVELS:
        raise UserError(
            f"{type(processor).__name__} changes pixel values in another way than scaling and "
            "normalising, which is not supported"
        )
    whole = levels.to(torch.uint8).movedim(-3, -1).contiguous()
    views = whole if whole.ndim == 5 else whole[:, None]
    return [
        Views(images=view, size=(picture.height, picture.width))
        for view, picture in zip(views, pictures, strict=True)
    ]
