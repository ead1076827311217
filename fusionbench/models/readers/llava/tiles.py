"""How LLaVA-NeXT and OneVision join the tiles of one picture behind the projector.

A picture is resized into the pinpoint (height, width) that keeps most of its pixels, padded to it
and cut into tiles of the tower's input; the whole picture, resized to one input, comes first. The
grids of the tiles are joined, what was padding is cut off, each row ends with the trained vector
`image_newline`, and the tokens of the whole picture stand in front (Liu et al. 2024, LLaVA-NeXT,
"anyres" with `spatial_unpad`). OneVision shrinks joined grids of more than `most` tiles bilinearly
(Li et al. 2024, arXiv:2408.03326).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api.types import Unsupported
from fusionbench.models.readers.llava.description import Pair

# Joined grids are shrunk from this ratio of side lengths on.
_TOLERATED = 1.1


def best(size: Pair, pinpoints: Sequence[Pair]) -> Pair:
    """The pinpoint that keeps most pixels of a picture (height, width), then wastes fewest."""

    def fits(pinpoint: Pair) -> Pair:
        scale = min(pinpoint[0] / size[0], pinpoint[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), prod(size))
        return kept, kept - prod(pinpoint)

    return max(pinpoints, key=fits)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The geometry of one checkpoint's tiles."""

    pinpoints: tuple[Pair, ...]
    side: int
    """Side of a tile in pixels."""
    grid: int
    """Patches along a side of a tile."""
    most: int = 0
    """Tiles above which the joined grid is shrunk; 0: never."""

    def tiles(self, size: Pair) -> Pair:
        """Rows and columns of tiles of a picture (height, width)."""
        height, width = best(size, self.pinpoints)
        return height // self.side, width // self.side

    def inputs(self, size: Pair) -> int:
        """Inputs of the tower that a picture makes: its tiles and the whole picture."""
        return 1 + prod(self.tiles(size))

    def tokens(self, size: Pair) -> int:
        """Positions that a picture takes in the language model."""
        rows, columns = self._shrunk(*self._unpadded(size))
        return self.grid**2 + rows * (columns + 1)

    def join(
        self,
        tokens: Float[Tensor, "input patch width"],
        size: Pair,
        newline: Float[Tensor, " width"],
    ) -> Float[Tensor, "position width"]:
        """Tokens of one picture from those of its inputs, the whole picture's first.

        One input alone (OneVision with several pictures in a row) gets one `newline` behind it.
        Raises Unsupported for another number of tokens per input than the grid's.
        """
        if tokens.shape[1] != self.grid**2:
            raise Unsupported(
                f"changes the number of tokens ({self.grid**2} to {tokens.shape[1]}), and the "
                "tiles of a picture are joined by their grids"
            )
        end = newline.to(tokens.dtype)
        if len(tokens) == 1:
            return torch.cat([tokens[0], end[None]])
        joined = self._cut(self._joined(tokens[1:], self.tiles(size)), size)
        ended = torch.cat([joined, end.expand(len(joined), 1, -1)], dim=1)
        return torch.cat([tokens[0], rearrange(ended, "row column c -> (row column) c")])

    def _joined(
        self, tokens: Float[Tensor, "tile patch width"], tiles: Pair
    ) -> Float[Tensor, "row column width"]:
        return rearrange(
            tokens, "(tr tc) (r c) w -> (tr r) (tc c) w", tr=tiles[0], tc=tiles[1], r=self.grid
        )

    def _cut(
        self, joined: Float[Tensor, "row column width"], size: Pair
    ) -> Float[Tensor, "row column width"]:
        """Without the padding, and shrunk where the checkpoint shrinks."""
        rows, columns = self._unpadded(size)
        top, left = (joined.shape[0] - rows) // 2, (joined.shape[1] - columns) // 2
        kept = joined[top : top + rows, left : left + columns]
        wanted = self._shrunk(rows, columns)
        if wanted == (rows, columns):
            return kept
        channels = rearrange(kept, "r c w -> 1 w r c")
        shrunk = F.interpolate(channels, size=wanted, mode="bilinear")
        return rearrange(shrunk, "1 w r c -> r c w")

    def _unpadded(self, size: Pair) -> Pair:
        """Rows and columns of patches behind the padding, which is the same on both sides."""
        rows, columns = (self.grid * tiles for tiles in self.tiles(size))
        height, width = size
        if width / height > columns / rows:
            return rows - 2 * ((rows - _whole(height * columns / width)) // 2), columns
        return rows, columns - 2 * ((columns - _whole(width * rows / height)) // 2)

    def _shrunk(self, rows: int, columns: int) -> Pair:
        ratio = sqrt(rows * columns / (self.most * self.grid**2)) if self.most else 1.0
        if ratio <= _TOLERATED:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)


def _whole(length: float) -> int:
    # Rounded in the 7th place first: 2.9999999 of floating point is 3.
    return int(round(length, 7))
