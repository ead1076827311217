"""Injections into a reader's layers and replacements of layers.

A `ReaderPatch` computes a layer of Llama from four parts. Other families have parts of the same
names that mean another thing (Gemma 3 normalises what leaves the attention, Granite scales what is
added), so a model's own layers are compared with Llama's formula.

Used by the decoder reader and, through `injected`, by causal language models of transformers.
Values are added by absolute position: a call that covers positions start..stop of the prompt gets
the values of start..stop, a call behind the prompt gets none. So one pass over the prompt, a pass
in chunks, generation with a cache and generation without one compute the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.types import Fused, Injection, ReaderLayer, Unsupported

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_TOLERANCE = 1e-2
"""Of the layer's largest output: half precision rounds, another formula differs by more."""


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The layers of a language model without its head; Unsupported if they are not found."""
    for name in ("layers", "h", "decoder.layers"):
        try:
            found = decoder.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return found
    raise Unsupported(f"the layers of {type(decoder).__name__} are not found")


def require_parts(layer: nn.Module) -> None:
    """Raise Unsupported unless the layer has Llama's parts and no other that does anything."""
    own = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)}
    absent = [name for name in PARTS if name not in own]
    if absent:
        raise Unsupported(
            f"replaces a layer of the language model by Llama's four parts, and "
            f"{type(layer).__name__} has no {absent[0]}"
        )
    further = sorted(own - set(PARTS))
    if further:
        raise Unsupported(
            f"replaces a layer of the language model by Llama's four parts, and "
            f"{type(layer).__name__} also has {further[0]}"
        )


@torch.no_grad()
def require_form(decoder: nn.Module, width: int) -> None:
    """Raise Unsupported unless each layer computes h + SA(N1(h)), then h + MLP(N2(h))."""
    layers = decoder_layers(decoder)
    for layer in layers:
        require_parts(layer)
    weight = next(layers.parameters())
    probe = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(weight)
    for layer, (hidden, named, left) in zip(layers, _calls(decoder, probe), strict=True):
        expected = _by_parts(layer, hidden, named)
        if (expected - left).abs().max() > _TOLERANCE * left.abs().max():
            raise Unsupported(
                f"replaces a layer of the language model by Llama's four parts, and "
                f"{type(layer).__name__} combines them in another way"
            )


def _calls(
    decoder: nn.Module, probe: Float[Tensor, "1 position width"]
) -> Sequence[tuple[Tensor, dict[str, Any], Tensor]]:
    """Input, other arguments and output of each layer."""
    seen: list[tuple[Tensor, dict[str, Any], Tensor]] = []

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], left: Any) -> None:
        rest = dict(named)
        hidden = given[0] if given else rest.pop("hidden_states")
        seen.append((hidden, rest, left[0] if isinstance(left, tuple) else left))

    hooks = [
        layer.register_forward_hook(note, with_kwargs=True) for layer in decoder_layers(decoder)
    ]
    try:
        decoder(inputs_embeds=probe, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _by_parts(
    layer: nn.Module, hidden: Float[Tensor, "1 position width"], named: dict[str, Any]
) -> Float[Tensor, "1 position width"]:
    norm, attend, second, mlp = (layer.get_submodule(name) for name in PARTS)
    mixed, *_ = attend(norm(hidden), **named)
    hidden = hidden + mixed
    return hidden + mlp(second(hidden))


Values = Float[Tensor, "batch token width"]
Hidden = Float[Tensor, "batch position width"]
Place = Callable[[Values], Hidden]
"""Places image values at their positions in the reader's sequence, zeros elsewhere."""
Projection = Callable[[Tensor], Tensor]


def project(
    fused: Fused, projector: Callable[[Tensor], Float[Tensor, "batch token width"]]
) -> Float[Tensor, "batch token width"]:
    """Fused tokens after the projector."""
    projected = projector(fused.tokens)
    return projected if fused.after_projector is None else fused.after_projector(projected)


@dataclass(kw_only=True)
class Window:
    """Positions of the prompt that a call of the reader covers, from `start` on."""

    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Injections and patches of one batch in a reader of `layers` layers.

    `place` returns values for the whole prompt; of these a call gets its window. Raises ValueError
    for a layer that does not exist.
    """

    fused: Fused
    layers: int
    place: Place
    projector: Projection
    window: Window = field(default_factory=Window)
    _added: Mapping[tuple[int, str], list[Values]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Project the injected values."""
        reached = [one.layer for one in self.fused.injections]
        for layer in (*reached, *(patch.layer for patch in self.fused.patches)):
            if not 0 <= layer < self.layers:
                raise ValueError(f"layer {layer} of a reader that has 0..{self.layers - 1}")
        added: dict[tuple[int, str], list[Values]] = {}
        for injection in self.fused.injections:
            value = self._values(injection)
            added.setdefault((injection.layer, injection.when), []).append(value)
        object.__setattr__(self, "_added", added)

    def around(self, index: int, layer: nn.Module) -> ReaderLayer:
        """The layer with its injections and patch; ValueError for two patches of one layer."""
        wraps = [patch.wrap for patch in self.fused.patches if patch.layer == index]
        if len(wraps) > 1:
            raise ValueError(f"layer {index} of the reader is replaced {len(wraps)} times")
        # `forward`, not `layer`: `injected` sets this function as the instance's forward.
        run = self._masked(wraps[0](layer)) if wraps else layer.forward

        def call(hidden_states: Hidden, *given: object, **named: object) -> Any:
            entering = self._plus(hidden_states, index, "before")
            left = run(entering, *given, **named)
            # Layers of some families and releases return a tuple.
            if isinstance(left, tuple):
                return (self._plus(left[0], index, "after"), *left[1:])
            return self._plus(left, index, "after")

        return call

    def reaches(self, index: int) -> bool:
        """Whether anything happens at this layer."""
        return any(layer == index for layer, _ in self._added) or any(
            patch.layer == index for patch in self.fused.patches
        )

    def _values(self, injection: Injection) -> Values:
        values = injection.values
        return self.projector(values) if injection.through_projector else values

    def _plus(self, hidden: Hidden, index: int, when: str) -> Hidden:
        for value in self._added.get((index, when), ()):
            part = self._part(value, hidden)
            hidden = hidden if part is None else hidden + part.to(hidden.dtype)
        return hidden

    def _part(self, value: Values, hidden: Hidden) -> Hidden | None:
        """Values of the positions that `hidden` covers; None behind the prompt."""
        length = hidden.shape[1]
        part = self.place(value)[:, self.window.start : self.window.start + length]
        if not part.shape[1]:
            return None
        if part.shape[1] < length:
            part = F.pad(part, (0, 0, 0, length - part.shape[1]))
        copies, rest = divmod(len(hidden), len(part))
        if rest:
            raise ValueError(f"{len(hidden)} rows in the reader, values for {len(part)}")
        # Beams: `generate` repeats each row in place.
        return part if copies == 1 else part.repeat_interleave(copies, dim=0)

    def _masked(self, layer: ReaderLayer) -> ReaderLayer:
        """The replaced layer; a causal mask stands in where transformers leaves the mask out."""

        def call(hidden_states: Hidden, *given: object, **named: Any) -> Hidden:
            if "attention_mask" in named and named["attention_mask"] is None:
                named["attention_mask"] = causal(hidden_states, self.window.start)
            return layer(hidden_states, *given, **named)

        return call


def causal(hidden: Hidden, start: int) -> Bool[Tensor, "1 1 asking asked"]:
    """The mask of positions from `start` on that see all before them; True = visible."""
    length = hidden.shape[1]
    ones = torch.ones(1, 1, length, start + length, dtype=torch.bool, device=hidden.device)
    return ones.tril(start)


@contextmanager
def injected(decoder: nn.Module, inside: Inside) -> Iterator[None]:
    """Within this block a language model's decoder runs with injections and patches.

    With gradient checkpointing the block must stay open until after `backward`, since layers run
    again there. Raises Unsupported for a patch of a layer that has not the parts of Llama's.
    """
    layers = decoder_layers(decoder)
    for patch in inside.fused.patches:
        require_parts(layers[patch.layer])
    touched = [(index, layer) for index, layer in enumerate(layers) if inside.reaches(index)]
    calls = [inside.around(index, layer) for index, layer in touched]
    own = [vars(layer).get("forward") for _, layer in touched]

    def note(_: nn.Module, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        inside.window.start = _seen((*given, *named.values()))

    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    for (_, layer), call in zip(touched, calls, strict=True):
        # An instance attribute shadows the class's method; the model's loop is unchanged.
        layer.forward = call
    try:
        yield
    finally:
        hook.remove()
        for (_, layer), before in zip(touched, own, strict=True):
            del layer.forward
            if before is not None:
                layer.forward = before


def _seen(given: Sequence[object]) -> int:
    """Positions in the cache among a call's arguments, 0 without one.

    The cache is found by its type: transformers renamed the argument in 5.24.
    """
    from transformers import Cache

    caches = [value for value in given if isinstance(value, Cache)]
    return int(caches[0].get_seq_length()) if caches else 0


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
