"""DTL: a low-rank state runs beside the blocks and is added back in the deeper half.

Fu, Zhu, Wu, AAAI 2024, arXiv:2312.07856. With r[0] = 0, for block l
    r[l] = r[l-1] + B[l] A[l] x[l-1]                        before the block; B = 0 at the start
    x[l] = Block_l(x[l-1])
    x[l] = x[l] + C( swish_b(r[l]) )                        after blocks l > L / 2
    swish_b(r) = r * sigmoid(b r)
C is the identity (`dtl`), or one depthwise convolution on the grid of patches, shared by all
blocks, which passes CLS and registers unchanged (`dtl-plus`). b is 100 as in the released scripts,
so that swish is almost a ReLU. Deviation: the paper reads block L, here hs[L-1] is read, so that
block L and its rank are left out. `readout`, the control, has the same parameters and sees the
frozen states of all blocks; r[L-1] is added once, to hs[L-1].
"""

import torch
from einops import rearrange
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

State = Float[Tensor, "batch token dim"]
_FEEDBACK = ("deeper_half", "each", "last", "after")


class LowRank(nn.Module):
    """B A x, zero at the start; parameters bear their official names."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, dim))
        self.lora_B = nn.Parameter(torch.zeros(dim, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Each token on its own."""
        return F.linear(F.linear(x, self.lora_A), self.lora_B)


@method(
    "dtl",
    version=1,
    idea="low-rank side state, added in deep blocks",
    variants={"": {"kernel": 0}, "readout": {"kernel": 0, "feedback": "after"}},
    in_all=("",),
    control="dtl-readout",
    paper="arXiv:2312.07856",
    year=2024,
    parity="deviates: the exact side network, up to block L-1",
    parameters="(L - 1)*2*rank*D",
    needs="encoder gradients",
    identity=True,
    details={"readout": {"needs": "", "parity": "deviates: its matched control, of ours"}},
    switches={
        "memory": ("rebuilt",),
        "feedback": ("after", "last", "each"),
        "pooled": (True,),
        "rank": (1, 8, 64),
        "sharpness": (1.0,),
    },
)
@method(
    "dtl-plus",
    version=1,
    idea="dtl with a convolution on the patches",
    variants={"": {"kernel": 3}, "readout": {"kernel": 3, "feedback": "after"}},
    in_all=False,
    control="dtl-plus-readout",
    paper="arXiv:2312.07856",
    year=2024,
    parity="deviates: the exact side network, up to block L-1",
    parameters="(L - 1)*2*rank*D + kernel*kernel*D",
    needs="grid, encoder gradients",
    identity=True,
    details={"readout": {"needs": "grid", "parity": "deviates: its matched control, of ours"}},
    switches={
        "memory": ("rebuilt",),
        "feedback": ("after", "last", "each"),
        "pooled": (True,),
        "kernel": (0, 5),
        "rank": (1, 8, 64),
        "sharpness": (1.0,),
    },
)
class DTL(InEncoderFusion):
    """`rank` of B A; `sharpness`: b; `kernel`: side of C's convolution, odd, or 0 for the identity.

    `memory`: "carried", or "rebuilt" (r[l] = B[l] A[l] x[l-1]). `feedback`: after the blocks of the
    "deeper_half", after "each", after the "last" that is run, L-1, or once "after" the frozen
    encoder. `pooled`: B A sees the mean patch in place of each token. Ranks that reach no feedback
    are not built. Raises Unsupported for an encoder without a block in its deeper half before L.
    """

    silent_if = {"feedback": ("after",)}
    identity_at_init = True
    live_after_steps = 2

    def __init__(  # noqa: PLR0913
        self,
        shape: StackShape,
        *,
        rank: int = 2,
        sharpness: float = 100.0,
        kernel: int = 0,
        memory: str = "carried",
        feedback: str = "deeper_half",
        pooled: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, rank=rank)
        at_least(0, sharpness=sharpness, kernel=kernel)
        if rank < 1 or kernel < 0 or (kernel and kernel % 2 == 0):
            raise ValueError(f"rank is at least 1, kernel odd or 0; got {rank} and {kernel}")
        self.depth = shape.layers - 1
        self.written = _written(one_of("feedback", feedback, _FEEDBACK), shape.layers)
        if not self.written:
            raise Unsupported(f"writes after no block before the last of {shape.layers}")
        self.writes = feedback != "after"
        self.carried = one_of("memory", memory, ("carried", "rebuilt")) == "carried"
        self.sharpness, self.pooled, self.needs_grid = sharpness, pooled, kernel > 0
        read = range(1, self.depth + 1) if self.carried else self.written
        # Official names count blocks from 0.
        self.lora_dict = nn.ModuleDict({str(block - 1): LowRank(shape.dim, rank) for block in read})
        self.lora_fusion = (
            nn.Conv2d(
                shape.dim, shape.dim, kernel, padding=kernel // 2, groups=shape.dim, bias=False
            )
            if kernel
            else None
        )

    def start(
        self,
        tokens: Float[Tensor, "batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> State:
        """r[1], from hs[0]."""
        return self._collect(1, tokens, torch.zeros_like(tokens))

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: State
    ) -> tuple[Float[Tensor, "batch token dim"], State]:
        """Write r[block] back where it is due, and collect the next one."""
        if self.writes and block in self.written:
            tokens = tokens + self._feedback(state)
        if block < self.depth:
            state = self._collect(block + 1, tokens, state)
        return tokens, state

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: State) -> Fused:
        """The patches of block L-1."""
        if not self.writes:
            tokens = tokens + self._feedback(state)
        return Fused(tokens=self.patches(tokens))

    def _collect(self, block: int, tokens: Float[Tensor, "batch token dim"], state: State) -> State:
        """The state r of a block, from its input."""
        before = state if self.carried else torch.zeros_like(state)
        name = str(block - 1)
        if name not in self.lora_dict:
            return before
        seen = self.patches(tokens).mean(dim=1, keepdim=True) if self.pooled else tokens
        return before + self.lora_dict[name](seen)

    def _feedback(self, state: State) -> State:
        """C of swish of r."""
        added = state * torch.sigmoid(self.sharpness * state)
        if self.lora_fusion is None:
            return added
        images = rearrange(self.patches(added), "b (y x) d -> b d y x", y=self.shape.grid[0])
        patches = rearrange(self.lora_fusion(images), "b d y x -> b (y x) d")
        return torch.cat([added[:, : self.shape.prefix], patches], dim=1)


def _written(feedback: str, layers: int) -> tuple[int, ...]:
    """The blocks after which r is added, of 1..L-1."""
    if feedback in ("last", "after"):
        return (layers - 1,) if layers > 1 else ()
    first = layers // 2 + 1 if feedback == "deeper_half" else 1
    return tuple(range(first, layers))
