"""Modules that methods and readers share; their attention runs under vmap on every device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

_composed = False


def sdpa(
    query: Float[Tensor, "*batch asked dim"],
    key: Float[Tensor, "*batch seen dim"],
    value: Float[Tensor, "*batch seen dim"],
    mask: Bool[Tensor, "*batch asked seen"] | None = None,
) -> Float[Tensor, "*batch asked dim"]:
    """Scaled dot-product attention, explicit within `composed`. `mask`: True = visible."""
    if not _composed:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return _by_hand(query, key, value, mask)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as two matrix products and a softmax."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    # In float32 at least, also under autocast.
    shares = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)
    return shares.to(value.dtype) @ value


@contextmanager
def composed() -> Iterator[None]:
    """Within this block `sdpa` uses explicit products, which vmap can differentiate on a GPU.

    With torch 2.11 no fused kernel passes forward and backward under vmap on CUDA.
    """
    global _composed  # noqa: PLW0603
    before, _composed = _composed, True
    try:
        yield
    finally:
        _composed = before


class CrossAttention(nn.Module):
    """Packed q, k, v projections with biases, named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} cannot be split into {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "batch asked dim"],
        key: Float[Tensor, "batch seen dim"],
        value: Float[Tensor, "batch seen dim"],
    ) -> Float[Tensor, "batch asked dim"]:
        """Attention of `asked` tokens over `seen` tokens, per example."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        parts = [
            rearrange(F.linear(x, w, b), "b n (h d) -> b h n d", h=self.heads)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        # By hand: PyTorch's fused attention has no vmap rule on the CPU, and these are small.
        mixed = _by_hand(*parts)
        return self.out_proj(rearrange(mixed, "b h n d -> b n (h d)"))


class Heads(nn.Module):
    """The projections of an attention without biases, named as in Llama."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def split(self, values: Float[Tensor, "batch position width"]) -> Tensor:
        """Split the width into heads: [batch head position part]."""
        return rearrange(values, "b n (h d) -> b h n d", h=self.heads)

    def joined(self, mixed: Float[Tensor, "batch head position part"]) -> Tensor:
        """Concatenate the heads and apply the output projection."""
        return self.o_proj(rearrange(mixed, "b h n d -> b n (h d)"))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) up(x)), without biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "batch position width"]) -> Tensor:
        """Per position."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
