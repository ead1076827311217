"""LLaVA's projector into the embedding space of a language model.

`mlp2x_gelu` of Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning" (arXiv
2310.03744): Linear, GELU, Linear, with the parameter names of transformers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.errors import one_of
from fusionbench.records.cell import PROJECTORS

_PROBES = 256


class LanguageProjector(nn.Module):
    """Projects fused tokens of width `in_dim` to a language model's `width`.

    At initialisation its outputs have the standard deviation `scale`, that of the token embeddings
    (`LanguageModel.scale`), for inputs of unit normal entries.

    normed  a LayerNorm without parameters in front, so that one learning rate fits hidden states
            of every scale
    plain   LLaVA's own, which a checkpoint's projector needs

    Parameters: k D H + H + H^2 + H. Raises ValueError for another `kind`.
    """

    def __init__(
        self, in_dim: int, width: int, *, kind: str = "normed", scale: float | None = None
    ) -> None:
        super().__init__()
        self.kind = one_of("projector", kind, PROJECTORS)
        self.linear_1 = nn.Linear(in_dim, width)
        self.linear_2 = nn.Linear(width, width)
        if scale is not None:
            probes = torch.randn(_PROBES, in_dim, generator=torch.Generator().manual_seed(0))
            self.start_at(scale, probes)

    def forward(self, tokens: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Project each token."""
        if self.kind == "normed":
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return self.linear_2(F.gelu(self.linear_1(tokens)))

    @torch.no_grad()
    def start_at(self, scale: float, tokens: Float[Tensor, "*batch in_dim"]) -> None:
        """Scale the last layer so that these tokens come out with standard deviation `scale`.

        For `plain`, whose inputs have no fixed scale, give tokens of the encoder. Raises ValueError
        for tokens that are all alike.
        """
        projected = self(tokens.to(self.linear_1.weight)).float()
        found = projected.std()
        # Equal tokens may differ by rounding.
        if not found > 1e-5 * projected.abs().max():
            raise ValueError("the projector's scale is set on tokens that are all alike")
        factor = scale / found
        self.linear_2.weight.mul_(factor)
        self.linear_2.bias.mul_(factor)
