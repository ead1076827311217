"""The probe track's reader: projector, question-conditioned attention pool, classifier.

A mean of token embeddings cannot tell "A left of B" from "B left of A", so the reader gets the
question's tokens with their positions; the fusion gets only the mean.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.modules import sdpa
from fusionbench.api.types import Fused, Unsupported
from fusionbench.readers.injection import project

_HEADS = 4


class Projector(nn.Module):
    """LLaVA's `mlp2x_gelu` into the reader's width, on normalised tokens.

    Hidden states differ in scale by layer and encoder by orders of magnitude; one parameter-free
    LayerNorm in front, the same for every method, keeps one learning rate meaningful.
    Parameters as in LLaVA: k D H + H + H^2 + H.
    """

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(in_dim, width)
        self.outer = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Project each token on its own."""
        return self.outer(F.gelu(self.inner(_normed(tokens))))


class Question(nn.Module):
    """A question's tokens and positions to one vector that knows their order."""

    def __init__(self, query_dim: int, width: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Linear(query_dim, width)
        self.positions = nn.Parameter(torch.randn(length, width))

    def forward(
        self,
        tokens: Float[Tensor, "batch length query_dim"],
        mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch width"]:
        """Mean over tokens of a non-linear function of (token, position)."""
        placed = F.gelu(self.embed(tokens) + self.positions)
        weights = mask.to(placed.dtype)[..., None]
        return (placed * weights).sum(dim=1) / weights.sum(dim=1)


class AttentiveReader(nn.Module):
    """Fused tokens and a question to logits over the task's closed answer set."""

    def __init__(
        self, in_dim: int, *, width: int, query_dim: int, length: int, answers: int
    ) -> None:
        super().__init__()
        if width % _HEADS:
            raise ValueError(f"the reader's width must be a multiple of {_HEADS}, got {width}")
        self.projector = Projector(in_dim, width)
        self.question = Question(query_dim, width, length)
        self.ask = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.combine = nn.Linear(4 * width, width)
        self.classify = nn.Linear(width, answers)

    def forward(
        self,
        fused: Fused,
        question: Float[Tensor, "batch length query_dim"],
        mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch answer"]:
        """Logits over the answers; Unsupported for a fusion that wants layers to reach into."""
        if fused.reaches_inside:
            raise Unsupported("reaches into the reader's layers, and this reader has none")
        asked = _normed(self.question(question, mask))
        seen = _normed(project(fused, self.projector))
        pooled = self._pool(asked, seen)
        # The product lets a linear layer see question and image together; the mean is there from
        # the first step, when attention still looks everywhere and nowhere.
        parts = [pooled, asked, pooled * asked, reduce(seen, "b n d -> b d", "mean")]
        joint = torch.cat([_normed(part) for part in parts], dim=-1)
        return self.classify(F.gelu(self.combine(joint)))

    def _pool(
        self, asked: Float[Tensor, "batch width"], seen: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch width"]:
        queries = rearrange(self.ask(asked), "b (h d) -> b h 1 d", h=_HEADS)
        keys = rearrange(self.keys(seen), "b n (h d) -> b h n d", h=_HEADS)
        values = rearrange(self.values(seen), "b n (h d) -> b h n d", h=_HEADS)
        pooled = sdpa(queries, keys, values)
        return rearrange(pooled, "b h 1 d -> b (h d)")


def _normed(values: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    return F.layer_norm(values, values.shape[-1:])
