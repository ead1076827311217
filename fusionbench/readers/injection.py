"""What a fusion does inside a reader: values added around its layers, layers run in another way.

The same for the decoder of the probe track, whose loop is ours, and for any causal language model
of transformers, whose layers are wrapped while it runs.
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
"""Puts image values at their positions in the reader's sequence, zeros elsewhere."""
Projector = Callable[[Tensor], Tensor]


def project(
    fused: Fused, projector: Callable[[Tensor], Float[Tensor, "batch token width"]]
) -> Float[Tensor, "batch token width"]:
    """The fused tokens in the reader's width."""
    projected = projector(fused.tokens)
    return projected if fused.after_projector is None else fused.after_projector(projected)


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A fusion's part in a reader of `layers` layers, for one batch.

    Raises ValueError for an injection or a patch at a layer that does not exist.
    """

    fused: Fused
    layers: int
    place: Place
    projector: Projector
    _added: Mapping[tuple[int, str], list[Hidden]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Put all values at their positions once."""
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
        """The layer as the fusion wants it to run."""
        wraps = [patch.wrap for patch in self.fused.patches if patch.layer == index]
        if len(wraps) > 1:
            raise ValueError(f"layer {index} of the reader is replaced {len(wraps)} times")
        # Its forward, not the layer: `wrapped` hangs this very function over the layer.
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
    """While it lasts, the layers of a language model run as the fusion wants them to."""
    for index, layer in enumerate(layers):
        # Set on the instance, over the class's own: the model's loop stays as it is.
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
    """Zeros, and image i from position `spots[i] = (row, first)` on; what overhangs is cut."""
    placed = like.new_zeros(like.shape)
    for value, (row, first) in zip(values, spots, strict=True):
        room = min(len(value), like.shape[1] - first)
        placed[row, first : first + room] = value[:room]
    return placed
