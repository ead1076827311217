"""Mema's two modules; their parameters bear the official names."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class State(NamedTuple):
    """What passes from block to block; `kept` are the tokens of block L-1, once there."""

    memory: Float[Tensor, "batch dim"]
    query: Float[Tensor, "batch asked"]
    kept: tuple[Float[Tensor, "batch token dim"], ...] = ()
    trace: tuple[Float[Tensor, "batch 4"], ...] = ()


class DynamicSharingUnit(nn.Module):
    """The memory update; not `carried`, it sees no memory. Officially, each bias exists twice.

    Without the `forget` gate the memory only grows, without the `write` gate every candidate is
    added in full.
    """

    def __init__(  # noqa: PLR0913
        self,
        dim: int,
        *,
        reduction: int,
        asked: int,
        carried: bool,
        forget: bool = True,
        write: bool = True,
    ) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.carried = carried
        self.W1 = nn.Linear(dim * (1 + carried) + asked, hidden)
        self.Wc, self.bc = nn.Linear(hidden, dim), nn.Parameter(torch.zeros(dim))
        self.Wi = nn.Linear(hidden, dim) if write else None
        self.bi = nn.Parameter(torch.zeros(dim)) if write else None
        self.Wf = nn.Linear(hidden, dim) if carried and forget else None
        self.bf = nn.Parameter(torch.zeros(dim)) if carried and forget else None

    def forward(
        self,
        summary: Float[Tensor, "batch dim"],
        query: Float[Tensor, "batch asked"],
        memory: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """The next memory; only its way into the gates is normalised."""
        seen = [F.layer_norm(memory, memory.shape[-1:])] if self.carried else []
        shared = torch.relu(self.W1(torch.cat([*seen, summary, query], dim=-1)))
        added = torch.tanh(self.Wc(shared) + self.bc)
        if self.Wi is not None:
            added = torch.sigmoid(self.Wi(shared) + self.bi) * added
        if not self.carried:
            return added
        if self.Wf is None:
            return memory + added
        return torch.sigmoid(self.Wf(shared) + self.bf) * memory + added


class SpatialGate(nn.Module):
    """The feedback: each token, CLS too, takes its share of an MLP of (token + memory).

    Not `token_wise`, the share is one learned number for all tokens and images.
    """

    def __init__(self, dim: int, *, token_wise: bool = True) -> None:
        super().__init__()
        self.delta = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.alpha_proj = nn.Linear(dim, 1) if token_wise else None
        if not token_wise:
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(
        self, tokens: Float[Tensor, "batch token dim"], memory: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch 3"]]:
        """The new tokens; for the trace the opening, size and direction of the feedback."""
        seen = F.layer_norm(tokens + memory[:, None], tokens.shape[-1:])
        if self.alpha_proj is not None:
            opening = torch.sigmoid(self.alpha_proj(seen))
        else:
            opening = torch.sigmoid(self.alpha).expand(*seen.shape[:2], 1)
        feedback = opening * torch.tanh(self.delta(seen))
        cosine = F.cosine_similarity(feedback.detach(), tokens.detach(), dim=-1)
        looks = [opening.detach()[..., 0], feedback.detach().norm(dim=-1), cosine]
        return tokens + feedback, torch.stack(looks, dim=-1).mean(dim=1)
