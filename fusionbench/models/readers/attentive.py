"""Attentive reader: projector, question-conditioned attention pooling, classifier.

The reader gets the question's tokens with positions, since their mean is the same for "A left of B"
and "B left of A"; the fusion gets only the mean. With a grid, the fused tokens get fixed
positions without parameters, the same for every method.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.modules import sdpa
from fusionbench.api.types import Fused, Unsupported
from fusionbench.models.readers.injection import project

_HEADS = 4
_LONGEST = 10_000.0
"""Ratio of the longest to the shortest wavelength of a position."""


def waves(
    places: Float[Tensor, " token"], width: int, longest: float = _LONGEST
) -> Float[Tensor, "token width"]:
    """Sines, then cosines, of each place at width / 2 frequencies from 1 down to 1 / `longest`.

    Frequency i of m is longest^(-i / m) (Vaswani et al. 2017, section 3.5).
    """
    half = width // 2
    steps = torch.arange(half, device=places.device, dtype=places.dtype)
    angles = places[:, None] * longest ** (-steps / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def positions(
    tokens: int,
    width: int,
    grid: tuple[int, int],
    *,
    longest: float = _LONGEST,
    device: torch.device | None = None,
) -> Float[Tensor, "token width"]:
    """The fixed position of each token.

    If the tokens fill the grid (rows, columns): half of the width for the row, half for the column,
    as in MAE (He et al. 2022). Otherwise the whole width for the token's index. `width`: a multiple
    of 4.
    """
    index = torch.arange(max(tokens, *grid), device=device, dtype=torch.float32)
    if tokens != grid[0] * grid[1]:
        return waves(index[:tokens], width, longest)
    rows, columns = (waves(index[:size], width // 2, longest) for size in grid)
    down = rows.repeat_interleave(grid[1], dim=0)
    return torch.cat([down, columns.repeat(grid[0], 1)], dim=1)


class Projector(nn.Module):
    """LLaVA's `mlp2x_gelu` into the reader's width, on normalised tokens.

    The scale of hidden states differs by orders of magnitude between layers and encoders; a
    LayerNorm without parameters lets one learning rate fit all.
    Parameters as in LLaVA: k D H + H + H^2 + H.
    """

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(in_dim, width)
        self.outer = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Project each token."""
        return self.outer(F.gelu(self.inner(_normed(tokens))))


class QuestionEncoder(nn.Module):
    """Encodes a question's tokens and positions as one vector."""

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
    """Logits over the closed answer set from fused tokens and a question.

    `grid`: the encoder's patches, rows and columns; None leaves the tokens without positions.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        width: int,
        query_dim: int,
        length: int,
        answers: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if width % _HEADS:
            raise ValueError(f"the reader's width must be a multiple of {_HEADS}, got {width}")
        self.grid = grid
        self.projector = Projector(in_dim, width)
        self.question = QuestionEncoder(query_dim, width, length)
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
        """Logits over the answers; Unsupported for a fusion that injects into layers."""
        if fused.reaches_inside:
            raise Unsupported("injects into the reader's layers, and this reader has none")
        asked = _normed(self.question(question, mask))
        seen = self._placed(_normed(project(fused, self.projector)))
        pooled = self._pool(asked, seen)
        # The product gives a linear layer the interaction of question and image; the mean is
        # useful from the first step, when attention is still uniform.
        parts = [pooled, asked, pooled * asked, reduce(seen, "b n d -> b d", "mean")]
        joint = torch.cat([_normed(part) for part in parts], dim=-1)
        return self.classify(F.gelu(self.combine(joint)))

    def _placed(
        self, seen: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        if self.grid is None:
            return seen
        tokens, width = seen.shape[-2:]
        return seen + positions(tokens, width, self.grid, device=seen.device).to(seen.dtype)

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
