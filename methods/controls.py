"""Controls: the budget of a fusion without its information.

    repeat         one layer several times: width and projector of a concatenation
    repeat_like    the same with the width of the method that its name ends with
    repeat_tokens  one layer, and behind it its own pooled patches: tokens of a concatenation
    uniform_mean   the plain mean of all blocks: a mix without weights
    random_layers  a concatenation of layers drawn by lot, the same for all seeds of a cell
The layer is the penultimate one, the base of the methods that they control. Controls with the
parameters of a method are in `wide_projector.py` and `peft.py`.
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, Unsupported, at_least, method, stream


@method(
    "repeat",
    version=1,
    idea="control: one layer, as wide as a join",
    control="none: it is a control itself",
    parameters="(times - 1)*D*H",
)
class Repeat(Fusion):
    """`hs[index]`, `times` times side by side."""

    def __init__(self, shape: StackShape, *, index: int = -2, times: int = 3) -> None:
        super().__init__(shape)
        at_least(1, times=times)
        self.taps = ((shape.layer(index),),)
        self.times = times
        self.out_dim = times * shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Repeat the patches along the channels."""
        return Fused(tokens=repeat(self.patches(hidden[0]), "b n d -> b n (k d)", k=self.times))


@method(
    "repeat_like",
    version=1,
    idea="control: one layer, as wide as the method",
    in_all=("vip_llava", "hf_list", "mllama"),
    variants={
        "lsf_external_direct-18": {"layers": "18,23"},
        "hf_list": {"layers": "4,8,16,27", "blocks": 27},
        "vip_llava": {"layers": "23,20,17,14,6", "norm": True},
        "mllama": {"layers": "32,3,7,15,23,30", "blocks": 32},
    },
    control="none: it is a control itself",
    parameters="D*H",
    details={
        "hf_list": {"parameters": "3*D*H"},
        "vip_llava": {"parameters": "4*D*H + 10*D"},
        "mllama": {"parameters": "5*D*H"},
    },
)
class RepeatLike(Fusion):
    """`hs[index]` as often as a concatenation of `layers` has taps on this encoder.

    `layers` and `blocks`: as in `concat.py`; `norm`: an affine LayerNorm over all channels.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        index: int = -2,
        layers: str = "18,23",
        blocks: int = 24,
        norm: bool = False,
    ) -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(index),),)
        self.times = len(self.paper_taps(layers, blocks=blocks))
        self.out_dim = self.times * shape.dim
        self.norm = nn.LayerNorm(self.out_dim) if norm else nn.Identity()

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Repeat the patches along the channels and normalise them."""
        wide = repeat(self.patches(hidden[0]), "b n d -> b n (k d)", k=self.times)
        return Fused(tokens=self.norm(wide))


@method(
    "repeat_tokens",
    version=1,
    idea="control: one layer with its pooled tokens",
    control="none: it is a control itself",
    parameters="0",
)
class RepeatTokens(Fusion):
    """The patches of `hs[index]`, then `copies` times their means over `pool` neighbours.

    Neighbours in raster order, left-overs dropped, as in `dense_connector-sti`.
    """

    def __init__(
        self, shape: StackShape, *, index: int = -2, copies: int = 2, pool: int = 8
    ) -> None:
        super().__init__(shape)
        at_least(1, copies=copies, pool=pool)
        self.taps = ((shape.layer(index),),)
        self.copies, self.pool = copies, pool
        if shape.grid[0] * shape.grid[1] < pool:
            raise Unsupported(f"{pool} patches are pooled into one; the grid is {shape.grid}")

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Append the pooled patches along the tokens."""
        patches = self.patches(hidden[0])
        whole = patches.shape[1] // self.pool * self.pool
        pooled = reduce(patches[:, :whole], "b (n k) d -> b n d", "mean", k=self.pool)
        return Fused(tokens=torch.cat([patches, *[pooled] * self.copies], dim=1))


@method(
    "uniform_mean",
    version=1,
    idea="control: plain mean of all layers",
    control="none: it is a control itself",
    parameters="0",
)
class UniformMean(Fusion):
    """The mean of `hs[1..L]`."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = (tuple(range(1, shape.layers + 1)),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The engine has averaged already."""
        return Fused(tokens=self.patches(hidden[0]))


@method(
    "random_layers",
    version=1,
    idea="control: layers drawn by lot, side by side",
    control="repeat",
    parameters="(count - 1)*D*H",
)
class RandomLayers(Fusion):
    """`count` different layers of `hs[1..L]` by lot number `draw`, side by side."""

    def __init__(self, shape: StackShape, *, count: int = 3, draw: int = 0) -> None:
        super().__init__(shape)
        at_least(1, count=count)
        at_least(0, draw=draw)
        lot = stream("random_layers", shape.layers, draw)
        chosen = lot.permutation(shape.layers)[:count] + 1
        self.taps = tuple((int(index),) for index in sorted(chosen))
        self.out_dim = len(self.taps) * shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Concatenate the patches."""
        patches = hidden[:, :, self.shape.prefix :]
        return Fused(tokens=rearrange(patches, "tap b n d -> b n (tap d)"))
