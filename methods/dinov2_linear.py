"""DINOv2's linear evaluation: CLS of the last blocks and the mean patch, behind the final norm.

Oquab et al. 2023, arXiv:2304.07193; their `create_linear_input` with `use_n_blocks` n:
    z = [cls norm(hs[L-n+1]) ; ... ; cls norm(hs[L]) ; mean patch of norm(hs[L])]
`norm` is the encoder's final norm, the same for every layer. The published recipe takes the best of
n = 1 and 4, with and without the mean, and 13 learning rates; DINOv3 keeps the mean always. One
token of (n + 1) D channels; the linear classifier is the reader's business here. `repeat`, the
control, reads the normed penultimate layer in place of every other state.
"""

from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, cat

from fusionbench.api import Fused, Fusion, StackShape, Unsupported, at_least, method


@method(
    "dinov2_linear",
    version=1,
    idea="CLS of four last layers, mean patch",
    variants={"": {"blocks": 4}, "repeat": {"blocks": 4, "repeat": True}},
    in_all=("",),
    control="dinov2_linear-repeat",
    paper="arXiv:2304.07193",
    year=2023,
    parity="equations: without the linear classifier, which the reader replaces",
    parameters="blocks*D*H",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"blocks": (1, 2), "average": (False,), "repeat": (True,)},
)
@method(
    "dinov2_linear-1",
    version=1,
    idea="CLS of the last layer and mean patch",
    variants={"": {"blocks": 1}},
    control="none: it reads one layer",
    paper="arXiv:2304.07193",
    year=2023,
    parity="equations: without the linear classifier, which the reader replaces",
    parameters="blocks*D*H",
    switches={"average": (False,)},
)
class DINOv2Linear(Fusion):
    """`blocks`: n, at most L; `average`: whether the mean patch is appended.

    Raises Unsupported for an encoder without CLS (`prefix` 0), and ValueError for `blocks` below 1.
    """

    def __init__(
        self, shape: StackShape, *, blocks: int = 4, average: bool = True, repeat: bool = False
    ) -> None:
        super().__init__(shape)
        at_least(1, blocks=blocks)
        if not shape.prefix:
            raise Unsupported("reads the CLS token, and this encoder has none")
        self.average = average
        count = min(blocks, shape.layers)
        layers = (
            (shape.layers - 1,) if repeat else range(shape.layers - count + 1, shape.layers + 1)
        )
        self.taps = tuple((shape.normed_layer(layer),) for layer in layers)
        self.copies = count if repeat else 1
        self.out_dim = shape.dim * (count + average)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """One token [batch 1 (n + 1) dim]."""
        parts = [repeat(hidden[:, :, 0], "tap b d -> b (k tap d)", k=self.copies)]
        if self.average:
            parts.append(reduce(self.patches(hidden[-1]), "b n d -> b d", "mean"))
        return Fused(tokens=rearrange(cat(parts, dim=-1), "b d -> b 1 d"))
