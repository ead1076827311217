"""Injections into a reader's layers and replacements of layers.

Used by the decoder reader and, through `wrapped`, by causal language models of transformers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.types import Fused, Injection, ReaderLayer

Values = Float[Tensor, "batch token width"]
Hidden = Float[Tensor, "batch position width"]
Place = Callable[[Values], Hidden]
"""Places image values at their positions in the reader's sequence, zeros elsewhere."""
Projector = Callable[[Tensor], Tensor]


def project(
    fused: Fused, projector: Callable[[Tensor], Float[Tensor, "batch token width"]]
) -> Float[Tensor, "batch token width"]:
    """Fused tokens after the projector."""
    projected = projector(fused.tokens)
    return projected if fused.after_projector is None else fused.after_projector(projected)


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Injections and patches of one batch in a reader of `layers` layers.

    Raises ValueError for a layer that does not exist.
    """

    fused: Fused
    layers: int
    place: Place
    projector: Projector
    _added: Mapping[tuple[int, str], list[Hidden]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Place all injected values in the sequence."""
        reached = [one.layer for one in self.fused.injections]
        for layer in (*reached, *(patch.layer for patch in self.fused.patches)):
            if not 0 <= layer < self.layers:
                raise ValueError(f"layer {layer} of a reader that has 0..{self.layers - 1}")
        added: dict[tuple[int, str], list[Hidden]] = {}
        for injection in self.fused.injections:
            value = self.place(self._values(injection))
            added.setdefault((injection.layer, injection.when), []).append(value)
        object.__setattr__(self, "_added", added)

    def around(self, index: int, layer: nn.Module) -> ReaderLayer:
        """The layer with its injections and patch; ValueError for two patches of one layer."""
        wraps = [patch.wrap for patch in self.fused.patches if patch.layer == index]
        if len(wraps) > 1:
            raise ValueError(f"layer {index} of the reader is replaced {len(wraps)} times")
        # `forward`, not `layer`: `wrapped` sets this function as the instance's forward.
        run = wraps[0](layer) if wraps else layer.forward

        def call(hidden_states: Hidden, *given: object, **named: object) -> Hidden:
            entering = self._plus(hidden_states, index, "before")
            return self._plus(run(entering, *given, **named), index, "after")

        return call

    def _values(self, injection: Injection) -> Values:
        values = injection.values
        return self.projector(values) if injection.through_projector else values

    def _plus(self, hidden: Hidden, index: int, when: str) -> Hidden:
        for value in self._added.get((index, when), ()):
            hidden = hidden + value
        return hidden


@contextmanager
def wrapped(layers: Sequence[nn.Module], inside: Inside) -> Iterator[None]:
    """Within this block the layers of a language model run with injections and patches."""
    for index, layer in enumerate(layers):
        # An instance attribute shadows the class's method; the model's loop is unchanged.
        layer.forward = inside.around(index, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def at_positions(
    values: Float[Tensor, "image token width"],
    spots: Sequence[tuple[int, int]],
    like: Float[Tensor, "batch position width"],
) -> Float[Tensor, "batch position width"]:
    """Zeros with image i placed from `spots[i] = (row, first)` on, cut at the end."""
    placed = like.new_zeros(like.shape)
    for value, (row, first) in zip(values, spots, strict=True):
        room = min(len(value), like.shape[1] - first)
        placed[row, first : first + room] = value[:room]
    return placed
