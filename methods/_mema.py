"""Mema's two modules, with parameters under their official names, its start and its blocks."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import StackShape, Unsupported, at_least, one_of

TRACE = ("gate_opening", "feedback_norm", "feedback_cosine", "memory_norm")


class State(NamedTuple):
    """What passes from block to block; `kept` are the tokens of block L-1, once there."""

    memory: Float[Tensor, "batch dim"]
    query: Float[Tensor, "batch asked"]
    kept: tuple[Float[Tensor, "batch token dim"], ...] = ()
    trace: tuple[Float[Tensor, "batch 4"], ...] = ()


class DynamicSharingUnit(nn.Module):
    """The memory update; not `carried`, it sees no memory. Officially, each bias exists twice.

    `gates`: "forget+input", one of them, or "none". Without the forget gate the memory only grows,
    without the input gate every candidate is added in full.
    """

    def __init__(
        self, dim: int, reduction: int, *, asked: int, carried: bool, gates: str = "forget+input"
    ) -> None:
        super().__init__()
        at_least(1, reduction=reduction)
        one_of("gates", gates, ("forget+input", "forget", "input", "none"))
        forget, write = "forget" in gates, "input" in gates
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
        """The new tokens; for the trace the opening, size and direction of the feedback.

        The trace is read from the trained model alone; in training it would take 7 % of a step.
        """
        seen = F.layer_norm(tokens + memory[:, None], tokens.shape[-1:])
        if self.alpha_proj is not None:
            opening = torch.sigmoid(self.alpha_proj(seen))
        else:
            opening = torch.sigmoid(self.alpha).expand(*seen.shape[:2], 1)
        feedback = opening * torch.tanh(self.delta(seen))
        if self.training:
            return tokens + feedback, tokens.new_zeros(tokens.shape[0], 3)
        cosine = F.cosine_similarity(feedback.detach(), tokens.detach(), dim=-1)
        looks = [opening.detach()[..., 0], feedback.detach().norm(dim=-1), cosine]
        return tokens + feedback, torch.stack(looks, dim=-1).mean(dim=1)


def initialise(fusion: nn.Module, init: str) -> None:
    """The values that training starts from, by the name of the start."""
    for name, parameter in fusion.named_parameters():
        if init == "effective" and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        elif init == "effective":
            nn.init.zeros_(parameter)
        elif name == "dsu.bf":
            nn.init.ones_(parameter)
        elif name in ("spatial_gate.alpha_proj.bias", "spatial_gate.alpha"):
            nn.init.constant_(parameter, -2.2)
        elif name.startswith("spatial_gate") and not (init == "repaired" and "delta.0" in name):
            nn.init.zeros_(parameter)


def gated_blocks(shape: StackShape, every: int, where: str) -> tuple[int, ...]:
    """The blocks after which the memory is written back; block L counts only where it is run."""
    at_least(1, every=every)
    middle = (shape.layers - 1) // 2
    halves = {"all": (1, shape.layers), "shallow": (1, middle), "deep": (middle + 1, shape.layers)}
    first, last = halves[one_of("where", where, tuple(halves))]
    found = tuple(block for block in range(first, last + 1) if block % every == 0)
    if not any(block < shape.layers for block in found):
        raise Unsupported(f"no block of {shape.layers - 1} is written with every={every}, {where}")
    return found


def looks_of(summary: str, shape: StackShape) -> tuple[str, ...]:
    """What a layer is summarised by; without CLS in the encoder the others remain."""
    looks = [one_of("summary", look, ("mean", "max", "cls")) for look in summary.split("+")]
    found = tuple(look for look in looks if look != "cls" or shape.prefix)
    if not found:
        raise Unsupported("the summary reads CLS alone, and this encoder has none")
    return found
