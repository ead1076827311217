"""TGIF: the text weighs all blocks; their sum is added to the penultimate layer and normalised.

Lin et al. 2026, arXiv:2601.03100:
    w = softmax(Linear_512,L(ReLU(Linear(t))));  tokens = LN(hs[L-1] + sum_l w_l hs[l]), l = 1..L
In the official code t is the mean over all input tokens, which in training include the answer;
`tgif-leaky` keeps that, and stays out of every aggregate. Their auxiliary loss, `alpha` times the
negative entropy of the batch's mean weights, is off by default there as well.
"""

from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, at_least, method


class LayerSelector(nn.Module):
    """Text to layer weights, and the norm; parameters bear their official names."""

    def __init__(self, shape: StackShape, width: int) -> None:
        super().__init__()
        self.layer_weights_projection = nn.Sequential(
            nn.Linear(shape.query_dim, width), nn.ReLU(), nn.Linear(width, shape.layers)
        )
        self.norm = nn.LayerNorm(shape.dim)


@method(
    "tgif",
    version=1,
    idea="the question weighs all layers",
    control="uniform_mean",
    unmatched="parameters: the mean is the same mix without what is trained",
    paper="arXiv:2601.03100",
    year=2026,
    parity="exact",
    parameters="Q*width + width + width*L + L + 2*D",
    switches={"alpha": (0.02,), "width": (64, 128, 256)},
)
@method(
    "tgif-shuffled_query",
    version=1,
    idea="control: tgif with another question",
    control="none: it is a control itself, of what the question contributes",
    question="shuffled",
    parameters="Q*width + width + width*L + L + 2*D",
)
class TGIF(Fusion):
    """`width`: of the selector; `alpha`: weight of its loss."""

    needs_query = True

    def __init__(self, shape: StackShape, *, width: int = 512, alpha: float = 0.0) -> None:
        super().__init__(shape)
        at_least(1, width=width)
        at_least(0, alpha=alpha)
        if not shape.query_dim:
            raise ValueError("tgif needs a question's vector, but query_dim is 0")
        self.taps = tuple((index,) for index in range(1, shape.layers + 1))
        self.base = max(shape.layers - 2, 0)
        self.alpha = alpha
        self.layer_selector = LayerSelector(shape, width)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Norm of the penultimate layer and the mix."""
        patches = hidden[:, :, self.shape.prefix :]
        weights = self.layer_selector.layer_weights_projection(query).softmax(dim=-1)
        mixed = einsum(patches, weights, "tap b n d, b tap -> b n d")
        mean = weights.mean(dim=0)
        losses = {}
        if self.alpha:
            losses["balance"] = self.alpha * (mean * (mean + 1e-8).log()).sum()
        return Fused(
            tokens=self.layer_selector.norm(patches[self.base] + mixed),
            losses=losses,
            trace={"layer_weights": mean.detach()},
        )


@method(
    "tgif-leaky",
    version=1,
    idea="tgif that sees the answer in training",
    in_all=False,
    control="tgif",
    paper="arXiv:2601.03100",
    year=2026,
    parity="exact, with the leak of the published training code",
    parameters="Q*width + width + width*L + L + 2*D",
)
class LeakyTGIF(TGIF):
    """TGIF as published: in training the text includes the answer, at test it cannot."""

    reads_answers = True
    expected_failures = {"answer_leak": "as published: in training the text includes the answer"}
