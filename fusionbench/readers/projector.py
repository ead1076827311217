"""The projector between fused tokens and a language model: two layers with a GELU.

LLaVA-1.5's `mlp2x_gelu` (Liu et al., CVPR 2024). With `normed` a LayerNorm without parameters
stands in front, as in the other readers: scales of hidden states differ by orders of magnitude.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LanguageProjector(nn.Module):
    """Linear, GELU, linear; its output starts at the scale of the language model's embeddings."""

    def __init__(self, in_dim: int, width: int, *, normed: bool, scale: float) -> None:
        super().__init__()
        self.normed = normed
        self.linear_1 = nn.Linear(in_dim, width)
        self.linear_2 = nn.Linear(width, width)
        _start(self.linear_1, in_dim**-0.5)
        # GELU of unit normals has a second moment of 0.43.
        _start(self.linear_2, scale / (0.43 * width) ** 0.5)

    def forward(
        self, tokens: Float[Tensor, "batch token in_dim"]
    ) -> Float[Tensor, "batch token width"]:
        """Image tokens as the language model reads them."""
        if self.normed:
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
        hidden: Tensor = F.gelu(self.linear_1(tokens))
        return self.linear_2(hidden)


def build_projector(in_dim: int, width: int, *, normed: bool, scale: float) -> LanguageProjector:
    """A projector for tokens of width `in_dim`; `scale` is the standard deviation it starts at."""
    return LanguageProjector(in_dim, width, normed=normed, scale=scale)


def _start(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
