"""Parts that several in-encoder methods share; parameters bear their official names."""

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class UnitState(NamedTuple):
    """The tokens that entered the block, and the unit's two vectors."""

    before: Float[Tensor, "batch token dim"]
    hidden: Float[Tensor, "batch dim"]
    cell: Float[Tensor, "batch dim"]


class Bottleneck(nn.Module):
    """Linear(D, D/r) - ReLU - Linear(D/r, gates D)."""

    def __init__(self, dim: int, *, gates: int, reduction: int) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.seq = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, gates * dim))

    def forward(self, vector: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch gates_dim"]:
        """Scores of all gates, one after the other."""
        return self.seq(vector)


class RecurrentUnit(nn.Module):
    """DIANet's LSTM over depth (four gates) and DLA's unit without the output gate (three).

    Gates in the order i, f, g, o; h = o * sigmoid(c), where an LSTM has a tanh.
    """

    def __init__(self, dim: int, *, gates: int, reduction: int) -> None:
        super().__init__()
        self.gates = gates
        self.w_ih = nn.ModuleList([Bottleneck(dim, gates=gates, reduction=reduction)])
        self.w_hh = nn.ModuleList([Bottleneck(dim, gates=gates, reduction=reduction)])

    def start(self, tokens: Float[Tensor, "batch token dim"]) -> UnitState:
        """Nothing seen but the input of block 1."""
        empty = tokens.new_zeros(tokens.shape[0], tokens.shape[2])
        return UnitState(tokens, empty, empty)

    def forward(
        self,
        seen: Float[Tensor, "batch dim"],
        hidden: Float[Tensor, "batch dim"],
        cell: Float[Tensor, "batch dim"],
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """The next hidden state and cell."""
        scores = self.w_ih[0](seen) + self.w_hh[0](hidden)
        write, keep, new, *shown = scores.chunk(self.gates, dim=-1)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
        hidden = torch.sigmoid(cell)
        return (torch.sigmoid(shown[0]) * hidden if shown else hidden), cell


class LayerAttention(nn.Module):
    """MRLA's query and key of a layer, from its mean patch, and its value map."""

    def __init__(self, dim: int, *, head: int) -> None:
        super().__init__()
        self.head = math.gcd(head, dim)
        width = int(abs((math.log2(dim) + 1) / 2))
        kernel = width if width % 2 else width + 1
        self.Wq: nn.Module
        self.Wq, self.Wk = (
            nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False) for _ in range(2)
        )
        self.Wv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(
        self, images: Float[Tensor, "batch dim y x"]
    ) -> tuple[
        Float[Tensor, "batch dim"], Float[Tensor, "batch dim"], Float[Tensor, "batch dim y x"]
    ]:
        """Query, key and value."""
        pooled = reduce(images, "b d y x -> b 1 d", "mean")
        return self.Wq(pooled)[:, 0], self.Wk(pooled)[:, 0], self.Wv(images)

    def agreement(
        self, query: Float[Tensor, "batch dim"], key: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch head"]:
        """The scaled product of query and key, head by head."""
        product = reduce(query * key, "b (head d) -> b head", "sum", d=self.head)
        return product / self.head**0.5

    def spread(self, weights: Float[Tensor, "batch head"]) -> Float[Tensor, "batch dim 1 1"]:
        """One weight a head, for all of its channels and places."""
        return weights.repeat_interleave(self.head, dim=-1)[..., None, None]


class LightLayerAttention(nn.Module):
    """MRLA-light: this layer's value by its own agreement, and `lambda_t` of what came before."""

    def __init__(self, dim: int, *, head: int, activated: bool) -> None:
        super().__init__()
        self.layer_attention = LayerAttention(dim, head=head)
        self.lambda_t = nn.Parameter(torch.randn(dim, 1, 1))
        self.activated = activated

    def forward(
        self, images: Float[Tensor, "batch dim y x"], before: Float[Tensor, "batch dim y x"]
    ) -> Float[Tensor, "batch dim y x"]:
        """The attended map; `activated` puts a GELU on the value, as for transformers."""
        query, key, value = self.layer_attention(images)
        value = F.gelu(value) if self.activated else value
        look = torch.sigmoid(self.layer_attention.agreement(query, key))
        return self.layer_attention.spread(look) * value + self.lambda_t * before


def as_images(
    tokens: Float[Tensor, "batch patch dim"], height: int
) -> Float[Tensor, "batch dim y x"]:
    """Patches as a map."""
    return rearrange(tokens, "b (y x) d -> b d y x", y=height)


def as_patches(images: Float[Tensor, "batch dim y x"]) -> Float[Tensor, "batch patch dim"]:
    """A map as patches."""
    return rearrange(images, "b d y x -> b (y x) d")
