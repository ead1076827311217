"""Head2Toe: a linear head over the pooled states of all layers, with a group lasso on features.

Evci et al., ICML 2022, arXiv:2201.03529. With f = [unit(mean hs[0]) ; ... ; unit(mean hs[L])], the
mean over patches of each layer scaled to length one, and f_j one feature of F = (L + 1) D,
    y = W f + b;    loss += weight * sum_j ||W_j|| / (sqrt(F) ||W||)
where W_j is the column of feature j. The paper fits W with the group lasso sum_j ||W_j||, scores
the features by ||W_j||^2, keeps the top fraction and fits anew. This is the first fit, with the
group lasso as a loss: a fusion sees no labels, so nothing is selected and fitted anew. The reader
normalises its input, which makes y free of W's scale; divided by ||W|| the penalty has none either,
and lies in (0, 1]. The other deviations: block outputs only, where the paper also takes
activations inside the blocks, and D outputs, which the reader classifies. `repeat`, the control,
has the penultimate layer in place of every other state.
"""

import math

from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, StackShape, at_least, method

_LEAST = 1e-6


@method(
    "head2toe",
    version=1,
    idea="means of all layers under a group lasso",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="head2toe-repeat",
    paper="arXiv:2201.03529",
    year=2022,
    parity="equations: the group lasso is a loss, and no second fit follows",
    parameters="(L + 1)*D*D + D",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"weight": (0.0, 0.01, 1.0), "repeat": (True,)},
)
class Head2Toe(Fusion):
    """`weight` of the group lasso. One token [batch 1 dim].

    The trace holds each layer's share of the scores ||W_j||^2.
    """

    def __init__(self, shape: StackShape, *, weight: float = 0.1, repeat: bool = False) -> None:
        super().__init__(shape)
        at_least(0, weight=weight)
        self.weight = weight
        count = shape.layers + 1
        self.taps = ((shape.layer(-2),),) if repeat else tuple((layer,) for layer in range(count))
        self.copies = count if repeat else 1
        self.head = nn.Linear(count * shape.dim, shape.dim)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The head's outputs and its penalty."""
        pooled = reduce(hidden[:, :, self.shape.prefix :], "tap b n d -> tap b d", "mean")
        units = F.normalize(pooled, dim=-1, eps=_LEAST)
        features = repeat(units, "tap b d -> b (k tap d)", k=self.copies)
        groups = self.head.weight.square().sum(dim=0)
        shares = reduce(groups.detach(), "(tap d) -> tap", "sum", d=self.shape.dim)
        return Fused(
            tokens=rearrange(self.head(features), "b d -> b 1 d"),
            losses={"group_lasso": self.weight * self._lasso(groups)} if self.weight else {},
            trace={"layer_weights": shares / shares.sum()},
        )

    def _lasso(self, groups: Float[Tensor, " feature"]) -> Float[Tensor, ""]:
        """sum_j ||W_j|| / (sqrt(F) ||W||), from the squared norms of the columns."""
        # The root has no gradient at zero.
        norms = groups.clamp_min(_LEAST**2).sqrt()
        return norms.sum() / (math.sqrt(len(groups)) * groups.sum().clamp_min(_LEAST**2).sqrt())
