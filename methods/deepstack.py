"""DeepStack of 2024: more tokens of the same layer enter deeper layers of the reader.

Meng et al., NeurIPS 2024, arXiv:2406.04334. Not a fusion of layers: all tokens are hs[L-1]'s. A
high-resolution map is sampled into sets of tokens, each of which covers the whole image; set k
passes the common projector and is added in front of reader layer start + k interval. No
high-resolution crops exist here, so the encoder's own map stands for them and its mean over
2 x 2 patches for the global view: four sets of a quarter of the tokens, which start at layer 0,
since the decoder has four (1 in the paper). `stacked` is the official sampling of crops.
"""

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from fusionbench.api import (
    Fused,
    Fusion,
    Injection,
    StackShape,
    Unsupported,
    at_least,
    method,
    one_of,
)

_SIDE = 2


def dilated(
    image: Float[Tensor, "*batch y x dim"], rows: int, columns: int
) -> Float[Tensor, "*batch entry token dim"]:
    """Entry (i, j) is `image[i::rows, j::columns]`, flattened; entries in row-major order."""
    return rearrange(image, "... (y i) (x j) d -> ... (i j) (y x) d", i=rows, j=columns)


def stacked(
    crops: Float[Tensor, "crop token dim"], *, rows: int, columns: int, sampling: str
) -> Float[Tensor, "entry token dim"]:
    """The sets of one image from its square crops, which come in row-major order.

    "2d", the official default, samples the whole map with gaps in both directions, "1d" along its
    rows only; "grid" takes the crops as they are.
    """
    one_of("sampling", sampling, ("2d", "1d", "grid"))
    if sampling == "grid":
        return crops
    side = round(crops.shape[1] ** 0.5)
    image = rearrange(crops, "(r c) (y x) d -> (r y) (c x) d", r=rows, y=side)
    if sampling == "2d":
        return dilated(image, rows, columns)
    flat = rearrange(image, "y x d -> (y x) d")
    return rearrange(flat, "(token entry) d -> entry token d", entry=rows * columns)


@method(
    "deepstack",
    version=1,
    idea="more tokens of one layer enter the reader",
    in_all=False,
    control="none: it fuses no layers",
    reader="decoder",
    paper="arXiv:2406.04334",
    year=2024,
    parity="deviates: exact sampling and stacking, but no high-resolution crops",
    parameters="0",
)
class DeepStack(Fusion):
    """`start`, `interval`: the reader's layers; sets for which there is no layer are left out."""

    needs_grid = True

    def __init__(
        self, shape: StackShape, *, index: int = -2, start: int = 0, interval: int = 1
    ) -> None:
        super().__init__(shape)
        at_least(0, start=start)
        at_least(1, interval=interval)
        if any(side % _SIDE for side in shape.grid):
            raise Unsupported(f"a grid of {shape.grid} cannot be sampled {_SIDE} by {_SIDE}")
        self.taps = ((shape.layer(index),),)
        layers = range(start, shape.reader_layers().layers, interval)
        self.targets = tuple(layers)[: _SIDE * _SIDE]

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The global view; the sets on their way into the reader."""
        image = rearrange(self.patches(hidden[0]), "b (y x) d -> b y x d", y=self.shape.grid[0])
        sets = dilated(image, _SIDE, _SIDE)
        injections = (
            Injection(layer=layer, when="before", values=sets[:, k], through_projector=True)
            for k, layer in enumerate(self.targets)
        )
        view = reduce(image, "b (y i) (x j) d -> b (y x) d", "mean", i=_SIDE, j=_SIDE)
        return Fused(tokens=view, injections=tuple(injections))
