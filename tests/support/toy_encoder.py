"""A small random transformer behind the encoder contract, and batches of its hidden states."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, StackShape
from fusionbench.harness.stepping import fuse

SHAPE = StackShape(layers=5, dim=16, grid=(3, 4), prefix=1, query_dim=6, mlp=32)


class Block(nn.Module):
    """One head of attention and an MLP, pre-norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, 3 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.mix(F.layer_norm(tokens, tokens.shape[-1:])).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(*parts)
        return tokens + self.mlp(F.layer_norm(tokens, tokens.shape[-1:]))


class ToyEncoder(Encoder):
    """Starts from hs[0]; there are no images."""

    def __init__(self, shape: StackShape = SHAPE) -> None:
        super().__init__()
        self.shape, self.size = shape, 0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block(shape.dim) for _ in range(shape.layers))
        self.freeze()

    def embed(self, images: Tensor) -> Tensor:
        raise NotImplementedError("the toy starts from hs[0]")

    def block(self, index: int, tokens: Tensor) -> Tensor:
        return self.blocks[index - 1](tokens)

    def linears(self, index: int) -> dict[str, nn.Linear]:
        """There is no product behind the attention."""
        block = self.blocks[index - 1]
        return {"qkv": block.mix, "fc1": block.mlp[0], "fc2": block.mlp[2]}

    def norm(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:])

    @torch.no_grad()
    def states_from(self, tokens: Tensor) -> list[Tensor]:
        """hs[0..L], and hs[L..0] after the final norm."""
        states = [tokens]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return [*states, *(self.norm(state) for state in reversed(states))]


def draw(shape: StackShape = SHAPE, *, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """hs[0] and queries."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, shape.tokens, shape.dim, generator=rng)
    return tokens, torch.randn(batch, shape.query_dim, generator=rng)


def run(method: Method, tokens: Tensor, query: Tensor) -> Fused:
    """The method as the engine runs it, on states of the toy encoder."""
    encoder = ToyEncoder(method.shape)
    states = encoder.states_from(tokens)
    return fuse(
        method,
        lambda taps: torch.stack([torch.stack([states[i] for i in tap]).mean(0) for tap in taps]),
        query,
        encoder,
    )


# Notices an attention map: any tensor whose last two axes are as long as the sequence.


class Maps(TorchDispatchMode):
    """Inside it, `found` takes the shape of every map that an operation gives, back or forth."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        square = (self.tokens, self.tokens)
        shapes = (tuple(one.shape) for one in tree_leaves(out) if isinstance(one, Tensor))
        self.found += [shape for shape in shapes if shape[-2:] == square]
        return out
