"""LoRA in the frozen encoder: low-rank changes of every linear layer, at the size of a method.

    W x  <-  W x + (a / r) B A x      for q, k, v, o, fc1, fc2 of blocks 2 to L-1

Hu et al., ICLR 2022, arXiv:2106.09685, with a = r as they choose it, so the factor is 1. B starts
at zero, A by Kaiming's rule. As in Mema block 1 stays as it is, since `hs[1]` comes from the cache,
and the tokens are `hs[L-1]` of the modified run. A planned contrast names it as baseline or control
of `mema`.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import LAYERS, Fused, InEncoderFusion, StackShape, Unsupported, method
from fusionbench.methods._sizes import parameters_of


class LowRankChange(nn.Module):
    """B A x."""

    def __init__(self, entering: int, leaving: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, entering))
        self.B = nn.Parameter(torch.zeros(leaving, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, given: Float[Tensor, "batch token from"]) -> Float[Tensor, "batch token to"]:
        """Each token on its own."""
        return given @ self.A.T @ self.B.T


@method(
    "lora",
    version=1,
    idea="low-rank change of the encoder's weights",
    control="none: it is a control itself",
    paper="arXiv:2106.09685",
    year=2022,
    parity="deviates: in a vision transformer and from block 2 on; not compared",
    parameters="(Q*D + 5*D*D + 6*D*D//4 + D//4 + 12*D)//D*D",
)
class LoRA(InEncoderFusion):
    """Low-rank terms beside all linear layers of blocks 2 to L-1, in all as large as `like`.

    Every layer has the same rank, the first ones one more to fill the size up. Unsupported on
    encoders whose linear layers are out of reach, or where rank 1 is larger than `like`.
    """

    adapts = True
    identity_at_init = True
    live_after_steps = 2

    def __init__(self, shape: StackShape, *, like: str = "mema") -> None:
        super().__init__(shape)
        if not shape.mlp:
            raise Unsupported("the linear layers of this encoder's blocks are out of reach")
        if shape.layers < 3:
            raise Unsupported("lora changes blocks 2 to L-1, and this encoder has none of them")
        self.depth = shape.layers - 1
        sizes = sizes_of(shape)
        costs = [sum(sizes[layer]) for _ in range(2, shape.layers) for layer in LAYERS]
        budget = parameters_of(like, shape)
        if sum(costs) > budget:
            raise Unsupported(
                f"rank 1 in every linear layer has {sum(costs):,} parameters, {like} {budget:,}"
            )
        ranks = iter(ranks_of(costs, budget))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({layer: LowRankChange(*sizes[layer], next(ranks)) for layer in LAYERS})
            for _ in range(2, shape.layers)
        )

    def start(
        self, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch query_dim"]
    ) -> tuple[()]:
        """No state."""
        return ()

    def delta(
        self, block: int, layer: str, given: Float[Tensor, "batch token from"]
    ) -> Float[Tensor, "batch token to"]:
        """The low-rank term of this layer."""
        changes = self.blocks[block - 2]
        changed: Tensor = changes.get_submodule(layer)(given)
        return changed

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: tuple[()]
    ) -> tuple[Float[Tensor, "batch token dim"], tuple[()]]:
        """The tokens of the block as they are."""
        return tokens, state

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: tuple[()]) -> Fused:
        """The patches of the modified block L-1."""
        return Fused(tokens=self.patches(tokens))


def sizes_of(shape: StackShape) -> Mapping[str, tuple[int, int]]:
    """Input and output width of each linear layer of a block."""
    square = dict.fromkeys(LAYERS, (shape.dim, shape.dim))
    return square | {"fc1": (shape.dim, shape.mlp), "fc2": (shape.mlp, shape.dim)}


def ranks_of(costs: Sequence[int], budget: int) -> list[int]:
    """A rank for each layer, at least 1; a unit of rank costs `costs` parameters."""
    rank = max(budget // sum(costs), 1)
    left = budget - rank * sum(costs)
    ranks = []
    for cost in costs:
        more = left >= cost / 2
        left -= cost * more
        ranks.append(rank + more)
    return ranks
