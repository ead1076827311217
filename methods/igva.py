"""IGVA: the instruction weighs four groups of layers; their sum stands beside the base.

Li, Zheng et al., Pattern Recognition 170 (2026), arXiv:2501.08443. With G_k the mean of hs[6k+1]
to hs[6k+6] and S the question's vector:
    q = Linear(S), K = V = Linear(CLS of the groups)
    4 x: q = LN(q + MHA(q, K, V)); q = LN(q + FFN(q))
    w = softmax(Linear(q)); tokens = [hs[L-1] ; sum_k w_k G_k]   along the channels
The official balance loss takes a softmax of w once more and never runs, since `outputs.get` finds
nothing; ours is the negative entropy of w itself. `frozen_average` is their pre-training stage:
every w is 1 / groups.
"""

import math

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import CrossAttention, Fused, Fusion, StackShape, anchored, at_least, method


class QueryTransformer(nn.Module):
    """One post-norm block: the question looks at the groups."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(
        self, asking: Float[Tensor, "batch 1 width"], groups: Float[Tensor, "batch group width"]
    ) -> Float[Tensor, "batch 1 width"]:
        """The next query."""
        found = self.norm1(self.cross_attention(asking, groups, groups) + asking)
        return self.norm2(self.ffn(found) + found)


class Aggregator(nn.Module):
    """The weights of the groups; parameters bear their official names."""

    def __init__(
        self, shape: StackShape, *, groups: int, width: int, heads: int, rounds: int
    ) -> None:
        super().__init__()
        self.sentence_proj = nn.Linear(shape.query_dim, width)
        self.cls_proj = nn.Linear(shape.dim, width)
        self.transformers = nn.ModuleList(QueryTransformer(width, heads) for _ in range(rounds))
        self.linear = nn.Linear(width, groups)

    def forward(
        self, query: Float[Tensor, "batch query_dim"], cls: Float[Tensor, "batch group dim"]
    ) -> Float[Tensor, "batch group"]:
        """Softmax over the groups."""
        asking, seen = self.sentence_proj(query)[:, None], self.cls_proj(cls)
        for block in self.transformers:
            asking = block(asking, seen)
        return self.linear(asking[:, 0]).softmax(dim=-1)


@method(
    "igva",
    version=1,
    idea="the question weighs four groups of layers",
    control="frozen_average",
    unmatched="parameters: the average is the same mix without what is trained",
    paper="arXiv:2501.08443",
    year=2026,
    parity="exact, with the balance loss repaired",
    parameters="Q*D + D*D + 2*D + rounds*(6*D*D + 10*D) + 4*(D + 1) + D*H",
    query_width=768,
    switches={"average": (True,), "rounds": (1, 2), "heads": (1, 2, 8), "balance": (0.0,)},
)
@method(
    "frozen_average",
    version=1,
    idea="igva with equal weights of the groups",
    variants={"": {"average": True}},
    parameters="D*H",
    needs="",
    control="none: it is a control itself, of methods whose weights follow the input",
)
class IGVA(Fusion):
    """`groups`: layers of each group, of an encoder with `blocks` blocks; `base`: stands beside.

    With another number of blocks each layer is mapped by itself: groups may share one (of 12 blocks
    hs[3], hs[6] and hs[9]), and a deeper encoder has layers in no group.

    `width` 0: the encoder's; `heads` as far as they divide it; `rounds` of the question's
    transformer; `average`: equal weights.

    An encoder without CLS shows the mean of its patches.
    """

    needs_query = True

    def __init__(  # noqa: PLR0913
        self,
        shape: StackShape,
        *,
        groups: str = "1..6,7..12,13..18,19..24",
        blocks: int = 24,
        base: int = -2,
        width: int = 0,
        heads: int = 4,
        rounds: int = 4,
        balance: float = 0.02,
        average: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, blocks=blocks, heads=heads, rounds=rounds)
        at_least(0, width=width, balance=balance)
        found = self.paper_taps(groups, blocks=blocks)
        self.groups, self.balance = len(found), balance
        self.taps, self.base = anchored(found, (shape.layer(base),))
        self.out_dim = 2 * shape.dim
        self.needs_query = not average
        if average:
            return
        if not shape.query_dim:
            raise ValueError("igva needs a question's vector, but query_dim is 0; set average=True")
        width = width or shape.dim
        self.vision_aggregator = Aggregator(
            shape, groups=self.groups, width=width, heads=math.gcd(heads, width), rounds=rounds
        )

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The base, and beside it the weighted groups."""
        patches = hidden[:, :, self.shape.prefix :]
        weights = patches.new_full((patches.shape[1], self.groups), 1 / self.groups)
        losses = {}
        if self.needs_query:
            weights = self.vision_aggregator(query, self._cls(hidden[: self.groups]))
            entropy = -(weights * weights.clamp_min(1e-8).log()).sum(dim=-1).mean()
            losses["balance"] = -self.balance * entropy
        mixed = einsum(patches[: self.groups], weights, "group b n d, b group -> b n d")
        tokens = torch.cat([patches[self.base], mixed], dim=-1)
        trace = {"layer_weights": weights.detach().mean(dim=0)}
        return Fused(tokens=tokens, losses=losses, trace=trace)

    def _cls(
        self, groups: Float[Tensor, "group batch token dim"]
    ) -> Float[Tensor, "batch group dim"]:
        seen = groups[:, :, :1] if self.shape.prefix else groups
        return reduce(seen, "group b n d -> b group d", "mean")
