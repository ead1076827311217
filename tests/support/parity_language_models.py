"""Tiny language models of transformers with recorded weights, which fusions reach into."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch
from parity_cases import Case
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from fusionbench.api.types import Fused, ReaderShape
from fusionbench.models.readers.injection import Inside, at_positions, injected

IGNORED = -100


def llama(case: Case, weights: Mapping[str, Tensor], *, mlp: int, heads: int) -> LlamaModel:
    """A Llama with these weights, named from `embed_tokens` on; its weights can be trained."""
    count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    vocabulary, width = weights["embed_tokens.weight"].shape
    model = LlamaModel(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=count,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=vocabulary,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
    )
    return loaded(model, weights)


def loaded(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights and no others; what is no weight of its own is left alone."""
    own = {name: weights[name] for name in model.state_dict()}
    model.load_state_dict(own)
    return model.eval()


def reader_shape(model: nn.Module) -> ReaderShape:
    config = model.config
    return ReaderShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
    )


class Run:
    """One pass through a language model that a fusion reaches into."""

    def __init__(
        self,
        model: nn.Module,
        embeds: Tensor,
        mask: Tensor | None,
        fused: Fused,
        spots: Sequence[tuple[int, int]],
    ) -> None:
        inside = Inside(
            fused=fused,
            layers=len(model.layers),
            place=lambda values: at_positions(values, spots, embeds),
            projector=nn.Identity(),
        )
        with injected(model, inside), _entering(model) as self._inputs:
            found = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        self.last: Tensor = found.last_hidden_state

    @property
    def layer_outputs(self) -> Tensor:
        """What left each layer, after what was added behind it."""
        return torch.stack(self._inputs[1:])

    @property
    def layer_inputs(self) -> Tensor:
        """What entered each layer, after what was added in front of it."""
        return torch.stack(self._inputs[:-1])


@contextmanager
def _entering(model: nn.Module):
    seen: list[Tensor] = []
    hooks = [
        layer.input_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for layer in model.layers
    ]
    hooks.append(model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    yield seen
    for hook in hooks:
        hook.remove()


def only_recorded(case: Case, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the case has; weights that it kept frozen have no recorded gradient."""
    return {name: value for name, value in found.items() if name in case.tensors}


def shifted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The next token's, over all labelled tokens of the batch."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
