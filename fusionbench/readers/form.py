"""The layers of a language model, and whether a method may replace one by its parts.

A `ReaderPatch` computes a layer of Llama from four parts. Other families have parts of the same
names that mean another thing (Gemma 3 normalises what leaves the attention, Granite scales what is
added), so a model's own layers are compared with Llama's formula.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.types import Unsupported

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
