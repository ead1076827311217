"""Parameter-efficient fine-tuning inside the frozen encoder, at the size of a method it controls.

    adapter   x_l <- x_l + s W_up relu(W_down LN(x_l))       Houlsby et al. 2019, arXiv:1902.00751;
                                                            AdaptFormer, arXiv:2205.13535
    vpt_deep  [prefix ; P_l ; patches] into block l          Jia et al. 2022, arXiv:2203.12119
    ssf       x_l <- gamma_l * x_l + beta_l                  Lian et al. 2022, arXiv:2210.08823
`lora` is in `lora.py`. As in Mema nothing acts before block 2, since `hs[1]` comes from the cache,
and the tokens are `hs[L-1]` of the modified run: adapters and SSF act after blocks 1 to L-1,
prompts in blocks 2 to L-1. A planned contrast names them as baseline or control of `mema`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import (
    Fused,
    InEncoderFusion,
    StackShape,
    Unsupported,
    at_least,
    method,
    one_of,
)
from fusionbench.methods._sizes import inner_blocks, parameters_of, units


class Bottleneck(nn.Module):
    """W_up relu(W_down LN(x)), with biases, LN without scale and shift; zero at the start."""

    def __init__(self, dim: int, width: int, *, start: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        if start == "zeros":
            nn.init.zeros_(self.down.weight)

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Each token on its own."""
        return self.up(torch.relu(self.down(F.layer_norm(tokens, tokens.shape[-1:]))))


class Stateless(InEncoderFusion):
    """Runs blocks 1 to L-1 and keeps nothing between them."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.depth = inner_blocks(shape)

    def start(
        self, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch query_dim"]
    ) -> tuple[()]:
        """No state."""
        return ()

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: tuple[()]) -> Fused:
        """The patches of the modified block L-1."""
        return Fused(tokens=self.patches(tokens))


@method(
    "adapter",
    version=1,
    idea="a bottleneck after every block",
    in_all=("",),
    variants={"": {}, "shared": {"shared": True}, "dead": {"start": "zeros"}},
    control="none: it is a control itself",
    paper="AdaptFormer, arXiv:2205.13535",
    year=2022,
    parity="deviates: after each block instead of parallel to its MLP; not compared",
    parameters="(Q*D + 5*D*D + 6*D*D//4 + D//4 + 12*D + 1 - (L - 1)*D)//(2*D + 1)*(2*D + 1)"
    " + (L - 1)*D",
    details={
        "shared": {
            "parameters": "(Q*D + 5*D*D + 6*D*D//4 + D//4 + 11*D + 1)//(2*D + 1)*(2*D + 1) + D"
        },
        "dead": {"parity": "deviates: the adapter's start in VPT's code, after each block"},
    },
    switches={"shared": (True,), "start": ("zeros",), "scale": (1.0,)},
)
class Adapter(Stateless):
    """A bottleneck after blocks 1 to L-1, as large in all as the method `like`.

    `shared`: one bottleneck for all blocks. `start`: "adaptformer", W_down by Kaiming's rule and
    W_up zero; "zeros" for both, as in VPT's code, where only the bias of W_up ever moves.
    `scale`: s. The widths of the bottlenecks differ by one at most.
    """

    identity_at_init = True
    live_after_steps = 2

    def __init__(
        self,
        shape: StackShape,
        *,
        like: str = "mema",
        shared: bool = False,
        start: str = "adaptformer",
        scale: float = 0.1,
    ) -> None:
        super().__init__(shape)
        self.scale = scale
        if one_of("start", start, ("adaptformer", "zeros")) == "zeros":
            self.expected_failures = {"live": "as in VPT's code: both matrices start at zero"}
        places, dim = (1 if shared else self.depth), shape.dim
        hidden = (parameters_of(like, shape) - places * dim) / (2 * dim + 1)
        self.bottlenecks = nn.ModuleList(
            Bottleneck(dim, width, start=start) for width in units(hidden, places)
        )

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: tuple[()]
    ) -> tuple[Float[Tensor, "batch token dim"], tuple[()]]:
        """Add the output of the block's bottleneck, or of the shared one."""
        bottleneck = self.bottlenecks[(block - 1) % len(self.bottlenecks)]
        return tokens + self.scale * bottleneck(tokens), state


@method(
    "ssf",
    version=1,
    idea="scale and shift of channels, every block",
    control="none: it is a control itself",
    paper="arXiv:2210.08823",
    year=2022,
    parity="deviates: after each block instead of after every layer; not compared",
    parameters="2*D*(L - 1)",
)
class SSF(Stateless):
    """Scale and shift of every channel after blocks 1 to L-1: 2 D (L-1) parameters.

    Starts at gamma ~ N(1, 0.02), beta ~ N(0, 0.02). Its size is fixed, far below Mema's.
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(self.depth, shape.dim))
        self.beta = nn.Parameter(0.02 * torch.randn(self.depth, shape.dim))

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: tuple[()]
    ) -> tuple[Float[Tensor, "batch token dim"], tuple[()]]:
        """Scale and shift the channels."""
        return tokens * self.gamma[block - 1] + self.beta[block - 1], state


@method(
    "vpt_deep",
    version=1,
    idea="learned prompts before every block",
    # As many prompts as match Mema multiply the cost of a block: seven times on `nano`.
    in_all=False,
    control="none: it is a control itself",
    paper="arXiv:2203.12119",
    year=2022,
    parity="deviates: prompts from block 2 on, and the patches are read instead of CLS; "
    "not compared",
    parameters="(Q*D + 5*D*D + 6*D*D//4 + D//4 + 11*D + 1 + D//2)//D*D",
)
class VPTDeep(Stateless):
    """Learned prompts before blocks 2 to L-1, behind CLS, as large in all as the method `like`.

    The blocks' outputs at the prompts are dropped, and the next block gets its own. Prompts start
    uniformly within +-sqrt(6 / (3 p^2 + D)), p = `patch` pixels a side; blocks get the same number
    of them or one more. Unsupported on encoders whose blocks use rotary positions.
    """

    def __init__(self, shape: StackShape, *, like: str = "mema", patch: int = 14) -> None:
        super().__init__(shape)
        at_least(1, patch=patch)
        if shape.rotary:
            raise Unsupported("inserts tokens, and this encoder's blocks use rotary positions")
        if shape.layers < 3:
            raise Unsupported("prompts enter blocks 2 to L-1, and this encoder has none of them")
        counts = units(parameters_of(like, shape) / shape.dim, shape.layers - 2)
        bound = math.sqrt(6 / (3 * patch**2 + shape.dim))
        self.prompts = nn.ParameterList(
            nn.Parameter(torch.empty(count, shape.dim).uniform_(-bound, bound)) for count in counts
        )

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: tuple[()]
    ) -> tuple[Float[Tensor, "batch token dim"], tuple[()]]:
        """Drop the prompts of this block and insert those of the next."""
        first, prompts = self.shape.prefix, tokens.shape[1] - self.shape.tokens
        head, rest = tokens[:, :first], tokens[:, first + prompts :]
        if block == self.depth:
            return torch.cat([head, rest], dim=1), state
        entering = self.prompts[block - 1].expand(len(tokens), -1, -1)
        return torch.cat([head, entering, rest], dim=1), state
