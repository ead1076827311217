"""Base classes of fusion methods: after the encoder (`Fusion`) or between its blocks.

Constructors take the encoder's shape and keyword-only settings; settings are the ablation axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.types import Fused, StackShape

Tap = tuple[int, ...]
"""Indices of hidden states that are averaged; a single layer is a tuple of one."""


class Method(nn.Module, ABC):
    """Attributes that both kinds of fusion declare."""

    needs_query: bool = False
    needs_grid: bool = False
    reads_answers: bool = False
    """Sees the answers in training (a leak of some papers); excluded from the aggregate."""
    identity_at_init: bool = False
    """Equals the penultimate layer at initialisation."""
    live_after_steps: int = 1
    """Optimiser steps after which every parameter has changed."""
    summary_weight: float = 0.0
    """Weight of 1 - cos(projector(summary), answer embedding) in the loss."""
    expected_failures: Mapping[str, str] = MappingProxyType({})
    """Checks of `fusionbench.checks` that are expected to fail, with the reason."""
    notes: tuple[str, ...] = ()
    """What a reader of its scores must know on this encoder; stored in every record."""
    out_dim: int

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape = shape
        self.out_dim = shape.dim

    def paper_taps(self, layers: str, *, blocks: int = 24) -> tuple[Tap, ...]:
        """`paper_taps` for the method's encoder, with a note where taps coincide on it."""
        taps, named = paper_taps(self.shape, layers, blocks=blocks), layers.count(",") + 1
        if len(taps) < named:
            coincide = f"{len(taps)} of {named} taps: the others coincide with them"
            self.notes = (*self.notes, f"{coincide} on {self.shape.layers} blocks")
        return taps

    def patches(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch patch dim"]:
        """Tokens without CLS and registers."""
        return tokens[:, self.shape.prefix :]

    def load_official(self, weights: Mapping[str, Tensor]) -> None:
        """Load a checkpoint whose weights have the names of the official code.

        Methods whose parameter names differ override this. Raises ValueError for a missing weight.
        """
        self.load_state_dict(matched(self.state_dict(), weights))

    def official_weights(self) -> dict[str, Tensor]:
        """The weights under the names of the official code, which `load_official` reads.

        Methods that override `load_official` override this. Raises ValueError for settings that the
        official code does not have.
        """
        return dict(self.state_dict())


class Fusion(Method):
    """A fusion after the encoder: it only reads hidden states, so these are cached."""

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
    """A fusion between the blocks of the encoder, which may change the tokens after each block.

    The engine calls `start(hs[0])`, then `after_block(i, tokens, state)` for i = 1..`depth`, then
    `finish`. `state` is any pytree of tensors. With `writes` False it must return the tokens
    unchanged, and runs on cached hidden states, without the encoder.
    """

    writes: bool = True
    adapts: bool = False
    """Whether `delta` adds to the linear layers of the blocks; `writes` must be True."""
    silent_if: Mapping[str, tuple[object, ...]] = {}
    """Setting values under which it writes nothing; a literal, read without importing."""
    depth: int
    """Last block that is run."""

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

    def delta(
        self, block: int, layer: str, given: Float[Tensor, "batch token from"]
    ) -> Float[Tensor, "batch token to"]:
        """What is added to the output of a linear layer of a block, from the layer's input.

        Called for blocks 2 to `depth` and every layer of `fusionbench.api.encoders.LAYERS` where
        the method declares `adapts`. Raises TypeError for a method that adapts no layer.
        """
        raise TypeError(f"{type(self).__name__} adapts no linear layer: it defines no `delta`")

    def forward(self, *args: object) -> Fused:
        """Raise TypeError: `fusionbench.harness.stepping` runs this kind of method."""
        raise TypeError(f"{type(self).__name__} steps with the encoder: start, after_block, finish")


def matched(names: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weight of each name, whatever prefix it has in the checkpoint.

    `dsu.W1.weight` finds `model.vision_tower.dsu.W1.weight`; other weights are ignored. Raises
    ValueError if a name matches no weight or several.
    """
    return {name: weights[_only(name, weights)] for name in names}


def _only(name: str, weights: Mapping[str, Tensor]) -> str:
    if name in weights:
        return name
    found = [official for official in weights if official.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} matches several weights of the checkpoint: {', '.join(found)}")
    some = ", ".join(sorted(weights)[:5]) or "nothing"
    raise ValueError(f"the checkpoint has no weight {name}; it has {some}, …")


def paper_taps(shape: StackShape, layers: str, *, blocks: int = 24) -> tuple[Tap, ...]:
    """Taps from words such as "23,7,15" or "23,0..11,12..23".

    A comma starts a new tap; `a..b` (both ends included) and `a+b` are averaged within one. The
    numbers are hidden states of the paper's encoder of `blocks` blocks, mapped to this encoder by
    `StackShape.paper_layer`, one by one: on a shallow encoder two ranges may share a layer, on a
    deeper one layers may be in none. Taps that coincide are kept once, which `Method.paper_taps`
    notes.
    """
    taps = [
        tuple(dict.fromkeys(shape.paper_layer(index, blocks=blocks) for index in _parse(tap)))
        for tap in layers.split(",")
    ]
    return tuple(dict.fromkeys(taps))


def anchored(taps: tuple[Tap, ...], anchor: Tap) -> tuple[tuple[Tap, ...], int]:
    """Taps with the anchor appended unless it is among them, and the anchor's position."""
    joined = taps if anchor in taps else (*taps, anchor)
    return joined, joined.index(anchor)


def _parse(tap: str) -> list[int]:
    found: list[int] = []
    for part in tap.split("+"):
        first, _, last = part.strip().partition("..")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise ValueError(f"layers are written like 23,7,15 or 23,0..11,12..23, not {tap!r}")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError(f"the range of layers {tap!r} is empty")
    return found
