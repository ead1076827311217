"""The projector of a checkpoint behind a fusion: the trained one where it fits, else a fresh one.

LLaVA's projector (`mlp2x_gelu`: linear, GELU, linear; Liu et al. 2024, arXiv:2310.03744) has no
norm in front, unlike the projector of the other readers. A fresh one is drawn from torch's global
generator: seed it first.
"""

import copy

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.readers.llava.checkpoint import Checkpoint

FRESH = "fresh projector"


class PlainProjector(nn.Module):
    """`linear_2(act(linear_1(tokens)))`, with the names of the official weights.

    `std`: standard deviation of the language model's token embeddings. The last layer starts with
    outputs of about this size where its inputs are of unit size, and without a bias.
    """

    def __init__(
        self,
        in_dim: int,
        width: int,
        *,
        std: float,
        bias: bool = True,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, width, bias=bias)
        self.act = nn.GELU() if act is None else act
        self.linear_2 = nn.Linear(width, width, bias=bias)
        nn.init.normal_(self.linear_2.weight, std=std / width**0.5)
        if bias:
            nn.init.zeros_(self.linear_2.bias)

    def forward(self, tokens: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Project each token."""
        return self.linear_2(self.act(self.linear_1(tokens)))


def projector_for(checkpoint: Checkpoint, out_dim: int) -> tuple[nn.Module, str]:
    """(projector, note) for fused tokens of `out_dim` channels, on the checkpoint's device.

    A copy of the trained projector, still frozen, and an empty note if its input is as wide; else a
    fresh projector with gradients and the note `fresh projector`, which belongs into the record.
    """
    first, last = _layers(checkpoint.projector)
    if out_dim == first.in_features:
        return copy.deepcopy(checkpoint.projector), ""
    fresh = PlainProjector(
        out_dim,
        last.out_features,
        std=checkpoint.language.scale,
        bias=first.bias is not None,
        act=copy.deepcopy(getattr(checkpoint.projector, "act", None)),
    )
    return fresh.to(device=first.weight.device, dtype=first.weight.dtype), FRESH


def _layers(projector: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    found = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    return found[0], found[-1]
