"""UniPT: the final tokens look at every layer, and each image weighs the layers.

Diao et al., CVPR 2024, arXiv:2308.14316, their module for transformers (CLIP4Clip). With m = D /
reduction and l = 0..L,
    A = W_a relu(hs[L]);   T[l] = W[l] relu(hs[l])
    M[l] = l1norm( relu(A T[l]') ) T[l] + T[l, cls]
    c = softmax_l( w . (A[cls] * mean_n T[l]) )
    y = hs[L] + W_u relu( sum_l c[l] M[l] )
l1norm divides by the sum of absolute values over the tokens of a row, at least 1e-6. For an encoder
without CLS the mean of all tokens stands for row cls. Deviation: w has no bias, which the softmax
would cancel. `repeat`, the control, reads hs[L], the anchor, in place of every state.
"""

from collections.abc import Mapping

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, anchored, at_least, method

_LEAST = 1e-6


@method(
    "unipt",
    version=1,
    idea="the last tokens look at every layer",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="unipt-repeat",
    paper="arXiv:2308.14316",
    year=2024,
    parity="exact",
    parameters="(L + 2)*(D + 1)*(D//reduction) + (D//reduction + 1)*D + D//reduction",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={
        "interaction": (False,),
        "confidence": (False,),
        "reduction": (4, 8),
        "index": (-2,),
        "repeat": (True,),
    },
)
class UniPT(Fusion):
    """`reduction`: D / m; `index`: layer of the anchor, hs[L] unless set.

    `interaction` False: M[l] = T[l] + T[l, cls]. `confidence` False: c[l] = 1 / (L + 1).
    """

    def __init__(  # noqa: PLR0913
        self,
        shape: StackShape,
        *,
        reduction: int = 2,
        interaction: bool = True,
        confidence: bool = True,
        index: int = -1,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, reduction=reduction)
        layers = range(shape.layers + 1)
        read = () if repeat else tuple((layer,) for layer in layers)
        self.taps, self.anchor = anchored(read, (shape.layer(index),))
        self.rows = [self.anchor if repeat else layer for layer in layers]
        self.interaction = interaction
        width = max(shape.dim // reduction, 1)
        self.downsample_layers = nn.ModuleList(nn.Linear(shape.dim, width) for _ in layers)
        asks = interaction or confidence
        self.downsample_layer = nn.Linear(shape.dim, width) if asks else None
        self.gate_layer = nn.Linear(width, 1, bias=False) if confidence else None
        self.upsample_layer = nn.Linear(width, shape.dim)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The patches of the anchor plus what they found; the trace is the mean of c."""
        anchor = hidden[self.anchor]
        asked = None if self.downsample_layer is None else self.downsample_layer(anchor.relu())
        states = [
            down(hidden[row].relu())
            for down, row in zip(self.downsample_layers, self.rows, strict=True)
        ]
        shares = self._confidence(asked, states)
        found = torch.zeros_like(states[0])
        for share, state in zip(shares, states, strict=True):
            found = found + share[:, None, None] * self._merged(asked, state)
        tokens = anchor + self.upsample_layer(found.relu())
        return Fused(
            tokens=self.patches(tokens), trace={"layer_weights": shares.detach().mean(dim=1)}
        )

    def load_official(self, weights: Mapping[str, Tensor]) -> None:
        """As in the base class; the official maps stand behind a ReLU in a Sequential."""
        parts = {name: name.rpartition(".1.") for name in weights}
        super().load_official(
            {f"{p[0]}.{p[2]}" if p[1] else name: weights[name] for name, p in parts.items()}
        )

    def official_weights(self) -> dict[str, Tensor]:
        """As in the base class; the number of each map in its Sequential is 1."""
        parts = {name: name.rpartition(".") for name in self.state_dict()}
        gate = "gate_layer."
        return {
            name if name.startswith(gate) else f"{parts[name][0]}.1.{parts[name][2]}": weight
            for name, weight in self.state_dict().items()
        }

    def _merged(
        self,
        asked: Float[Tensor, "batch token part"] | None,
        state: Float[Tensor, "batch token part"],
    ) -> Float[Tensor, "batch token part"]:
        """M of one layer."""
        if not self.interaction or asked is None:
            return state + self._cls(state)[:, None]
        scores = torch.relu(asked @ state.mT)
        looks = scores / scores.sum(dim=-1, keepdim=True).clamp_min(_LEAST)
        return looks @ state + self._cls(state)[:, None]

    def _confidence(
        self,
        asked: Float[Tensor, "batch token part"] | None,
        states: list[Float[Tensor, "batch token part"]],
    ) -> Float[Tensor, "layer batch"]:
        """The weights c of the layers, for each image."""
        if self.gate_layer is None or asked is None:
            return states[0].new_full((len(states), len(states[0])), 1 / len(states))
        asking = self._cls(asked)
        means = torch.stack([reduce(state, "b n m -> b m", "mean") for state in states])
        return self.gate_layer(asking * means)[..., 0].softmax(dim=0)

    def _cls(self, tokens: Float[Tensor, "batch token part"]) -> Float[Tensor, "batch part"]:
        return tokens[:, 0] if self.shape.prefix else tokens.mean(dim=1)
