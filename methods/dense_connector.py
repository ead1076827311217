"""Dense Connector: three parameter-free ways to join layers in front of the projector.

Yao et al., NeurIPS 2024, arXiv:2405.13800. The final feature X stands first in every form:
    STI  tokens   [X ; pool_8(hs[7]) ; pool_8(hs[15])]
    SCI  channels [X ; hs[7] ; hs[15]]
    DCI  channels [X ; mean(hs[0..11]) ; mean(hs[12..23])]
    efficient     DCI, shrunk bilinearly behind the projector to half the height and width
The paper's "8,16,24" count the embedding as 1, so they are hs[7], hs[15], hs[23]; hs[0] is in the
first group, and hs[24] is nowhere. For CLIP X = hs[23] also lies in the second group; for SigLIP
(27 blocks, the last one deleted) the groups are hs[0..12] and hs[13..25], and X = hs[26] in none.
No code was released for the efficient form.
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, StackShape, Unsupported, method, one_of

# By convention: the blocks of the encoder that is meant, and its layers; the final one first.
_BLOCKS = {"clip": 24, "siglip": 27}
_SPARSE = {"clip": "23,7,15", "siglip": "26,7,15"}
_DENSE = {"clip": "23,0..11,12..23", "siglip": "26,0..12,13..25"}
_POOL = 8


@method(
    "dense_connector",
    version=1,
    idea="layers or groups joined without weights",
    variants={
        "sti": {"form": "sti"},
        "sci": {"form": "sci"},
        "dci": {"form": "dci"},
    },
    control="repeat",
    representative="dci",
    paper="arXiv:2405.13800",
    year=2024,
    parity="exact",
    parameters="2*D*H",
    details={"sti": {"parameters": "0", "control": "repeat_tokens"}},
    switches={"form": ("sci", "sti", "dci"), "convention": ("siglip",)},
)
class DenseConnector(Fusion):
    """`form`: one of the first three; `convention`: whose layer numbers, "clip" or "siglip"."""

    def __init__(self, shape: StackShape, *, form: str = "dci", convention: str = "clip") -> None:
        super().__init__(shape)
        self.form = one_of("form", form, ("sti", "sci", "dci"))
        blocks = _BLOCKS[one_of("convention", convention, tuple(_BLOCKS))]
        layers = (_SPARSE if form in ("sti", "sci") else _DENSE)[convention]
        self.taps = self.paper_taps(layers, blocks=blocks)
        if form != "sti":
            self.out_dim = shape.dim * len(self.taps)
        elif shape.grid[0] * shape.grid[1] < _POOL:
            raise Unsupported(f"STI pools {_POOL} patches into one; the grid is {shape.grid}")

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Join along tokens (STI) or channels."""
        patches = hidden[:, :, self.shape.prefix :]
        if self.form == "sti":
            return Fused(tokens=_append_pooled(patches))
        return Fused(tokens=rearrange(patches, "tap b n d -> b n (tap d)"))


@method(
    "dense_connector-efficient",
    version=2,
    idea="DCI with a quarter of the tokens",
    variants={"": {"form": "dci"}},
    control="dense_connector-efficient-repeat",
    paper="arXiv:2405.13800",
    year=2024,
    parity="no official code",
    parameters="2*D*H",
)
class EfficientDenseConnector(DenseConnector):
    """`form`: "sci" or "dci", whose tokens are a grid; behind the projector a quarter of them."""

    needs_grid = True

    def __init__(self, shape: StackShape, *, form: str = "dci", convention: str = "clip") -> None:
        super().__init__(shape, form=one_of("form", form, ("sci", "dci")), convention=convention)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Join as before; what is left to do is for the projected tokens."""
        joined = super().forward(hidden, query).tokens
        return Fused(tokens=joined, after_projector=self.halved)

    def halved(
        self, tokens: Float[Tensor, "batch patch width"]
    ) -> Float[Tensor, "batch quarter width"]:
        """Half the height and width, bilinearly."""
        height, width = self.shape.grid
        images = rearrange(tokens, "b (y x) d -> b d y x", y=height)
        size = (max(height // 2, 1), max(width // 2, 1))
        return rearrange(F.interpolate(images, size, mode="bilinear"), "b d y x -> b (y x) d")


@method(
    "dense_connector-efficient-repeat",
    version=1,
    idea="control: one layer three times",
    control="none: it is a control itself",
    parameters="2*D*H",
)
class EfficientRepeat(EfficientDenseConnector):
    """`hs[L-1]` three times side by side, and behind the projector a quarter of its tokens."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(-2),),)
        self.times = self.out_dim // shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """As the efficient form, with the penultimate layer in place of every other state."""
        wide = repeat(self.patches(hidden[0]), "b n d -> b n (k d)", k=self.times)
        return Fused(tokens=wide, after_projector=self.halved)


def _append_pooled(
    patches: Float[Tensor, "tap batch patch dim"],
) -> Float[Tensor, "batch token dim"]:
    """X, then the sparse taps averaged over 8 neighbours in raster order; left-overs dropped."""
    whole = patches.shape[2] // _POOL * _POOL
    pooled = reduce(patches[1:, :, :whole], "tap b (n k) d -> b (tap n) d", "mean", k=_POOL)
    return torch.cat([patches[0], pooled], dim=1)


def joined_frames(
    frames: Float[Tensor, "frame token width"], *, pooled: bool
) -> Float[Tensor, "token width"]:
    """A video's projected frames one after the other, each halved by maxima over pairs of tokens.

    For released checkpoints: no task here has videos.
    """
    if pooled:
        whole = frames.shape[1] // 2 * 2
        frames = reduce(frames[:, :whole], "t (n k) d -> t n d", "max", k=2)
    return rearrange(frames, "t n d -> (t n) d")
