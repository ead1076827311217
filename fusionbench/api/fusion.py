"""What a fusion method is: a module over hidden states, or one that steps with the encoder.

Both kinds take the encoder's shape and keyword-only settings; the settings are the ablation axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.types import Fused, StackShape

Tap = tuple[int, ...]
"""A set of hidden states that is averaged; a single layer is a set of one."""


class Method(nn.Module, ABC):
    """What both kinds of fusion declare."""

    needs_query: bool = False
    needs_grid: bool = False
    reads_answers: bool = False
    """Sees the answers in training (a leak that some papers have); kept out of the aggregate."""
    identity_at_init: bool = False
    """Promises to start as the penultimate layer."""
    live_after_steps: int = 1
    """Optimiser steps after which every parameter has moved."""
    summary_weight: float = 0.0
    """Weight of 1 - cos(projector(summary), answer embedding) in the loss."""
    expected_failures: Mapping[str, str] = MappingProxyType({})
    """Checks of `fusionbench.checks` that it is meant to fail, and why."""
    out_dim: int

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape = shape
        self.out_dim = shape.dim

    def patches(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch patch dim"]:
        """Tokens without CLS and registers."""
        return tokens[:, self.shape.prefix :]

    def load_official(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights under their official names, such as a released checkpoint.

        Parameters bear their official names already, unless a method overrides this. Raises
        ValueError for a weight that is missing.
        """
        self.load_state_dict(matched(self.state_dict(), weights))


class Fusion(Method):
    """A fusion after the encoder: reads its taps, writes nothing back, so features are cached."""

    taps: tuple[Tap, ...]
    """Each entry is averaged; indices are resolved and non-negative."""

    @abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Fuse the tapped hidden states, prefix tokens included, in the order of `taps`."""


class InEncoderFusion(Method):
    """A fusion that steps with the encoder and may write into the tokens after each block.

    The engine calls `start(hs[0])`, then `after_block(i, tokens, state)` for i = 1..`depth`, then
    `finish`. `state` is any pytree of tensors. With `writes` False the tokens must come back
    unchanged; the method is then stepped over cached hidden states, without the encoder.
    """

    writes: bool = True
    silent_if: Mapping[str, tuple[object, ...]] = {}
    """Values of settings with which nothing is written; a literal, read without importing."""
    depth: int
    """The last block the method needs; later blocks are not run."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.depth = shape.layers

    @abstractmethod
    def start(
        self,
        tokens: Float[Tensor, "batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Any:
        """The state before block 1; `tokens` is `hs[0]`."""

    @abstractmethod
    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: Any
    ) -> tuple[Float[Tensor, "batch token dim"], Any]:
        """Update the state and, if the method writes, the tokens that enter the next block."""

    @abstractmethod
    def finish(self, tokens: Float[Tensor, "batch token dim"], state: Any) -> Fused:
        """Fused tokens from the (modified) output of block `depth` and the state."""

    def forward(self, *args: object) -> Fused:
        """Refuse: this kind of method is stepped, see `fusionbench.harness.stepping`."""
        raise TypeError(f"{type(self).__name__} steps with the encoder: start, after_block, finish")


# Official parameter names: how a released checkpoint meets a method's own parameters.


def matched(names: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each name the weight called so, whatever stands before it in the checkpoint.

    `dsu.W1.weight` finds `model.vision_tower.dsu.W1.weight`; other weights are left alone. Raises
    ValueError if a name is missing or fits more than one weight.
    """
    return {name: weights[_only(name, weights)] for name in names}


def _only(name: str, weights: Mapping[str, Tensor]) -> str:
    if name in weights:
        return name
    found = [official for official in weights if official.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} fits several of the checkpoint's weights: {', '.join(found)}")
    some = ", ".join(sorted(weights)[:5]) or "nothing"
    raise ValueError(f"the checkpoint has no weight {name}; it has {some}, …")


# Layer sets as papers write them, resolved for the encoder at hand.


def paper_taps(shape: StackShape, layers: str, *, blocks: int = 24) -> tuple[Tap, ...]:
    """Taps from words such as "23,7,15" or "23,0..11,12..23".

    A comma starts a new tap; `a..b` (both ends included) and `a+b` are averaged within one. The
    numbers are hidden states of the paper's encoder of `blocks` blocks and are mapped to this one
    by `StackShape.paper_layer`. What a shallow encoder maps to the same layers is kept once.
    """
    taps = [
        tuple(dict.fromkeys(shape.paper_layer(index, blocks=blocks) for index in _parse(tap)))
        for tap in layers.split(",")
    ]
    return tuple(dict.fromkeys(taps))


def anchored(taps: tuple[Tap, ...], anchor: Tap) -> tuple[tuple[Tap, ...], int]:
    """Taps with the anchor behind them, unless it is one of them; and where it stands."""
    joined = taps if anchor in taps else (*taps, anchor)
    return joined, joined.index(anchor)


def _parse(tap: str) -> list[int]:
    found: list[int] = []
    for part in tap.split("+"):
        first, _, last = part.strip().partition("..")
        if not (first.isdigit() and (last or first).isdigit()):
            raise ValueError(f"layers are written like 23,7,15 or 23,0..11,12..23, not {tap!r}")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError(f"no layer lies in {tap!r}")
    return found
