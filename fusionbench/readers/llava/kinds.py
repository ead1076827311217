"""Classes of transformers that `llava:` takes apart, by `model_type`. Standard library only.

The defaults are those of the configuration classes, since `config.json` may leave them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]
SELECTIONS = ("default", "full")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class and the values of its configuration that a file may leave out."""

    cls: str
    """Name of the class in transformers."""
    layer: int
    """Default of `vision_feature_layer`."""
    select: str
    """Default of `vision_feature_select_strategy`."""
    image_token: int
    """Default of `image_token_index`."""
    tower: Mapping[str, Any]
    """Vision configuration where the file has none."""
    pinpoints: tuple[Pair, ...] = ()
    """Default of `image_grid_pinpoints`, height x width in pixels; empty: no tiles."""
    most_tiles: int = 0
    """Number in the default of `vision_aspect_ratio`; 0: features are never shrunk."""
    tiles_several: bool = True
    """Whether the pictures of a row that has several are tiled."""


_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "image_size": 384,
}
_ONE_TO_SIX = range(1, 7)

KINDS: Mapping[str, Kind] = {
    "llava": Kind(
        cls="LlavaForConditionalGeneration",
        layer=-2,
        select="default",
        image_token=32000,
        tower=_CLIP,
    ),
    "llava_next": Kind(
        cls="LlavaNextForConditionalGeneration",
        layer=-2,
        select="default",
        image_token=32000,
        tower=_CLIP,
        pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    ),
    "llava_onevision": Kind(
        cls="LlavaOnevisionForConditionalGeneration",
        layer=-1,
        select="full",
        image_token=151646,
        tower=_SIGLIP,
        pinpoints=tuple((384 * row, 384 * column) for row in _ONE_TO_SIX for column in _ONE_TO_SIX),
        most_tiles=9,
        tiles_several=False,
    ),
}
