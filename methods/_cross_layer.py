"""The layer that Layer_Select_Fuse's modular form puts in place of one of the reader's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import GatedMLP, Heads, sdpa


class ImageAttention(Heads):
    """Cross-attention without positions."""

    def forward(
        self,
        asking: Float[Tensor, "batch position width"],
        image: Float[Tensor, "batch token width"],
        mask: Tensor | None,
    ) -> Float[Tensor, "batch position width"]:
        """Attend from the sequence to the image."""
        given = ((self.q_proj, asking), (self.k_proj, image), (self.v_proj, image))
        query, key, value = (self.split(part(values)) for part, values in given)
        return self.joined(sdpa(query, key, value, mask))


class Gate(nn.Module):
    """tanh of one number that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "batch position width"]) -> Tensor:
        """Let its share through."""
        return torch.tanh(self.weight) * x


class CrossLayer(nn.Module):
    """What `modular` adds to a layer of the reader."""

    def __init__(self, width: int, *, heads: int, mlp: int, as_published: bool) -> None:
        super().__init__()
        self.as_published = as_published
        self.ucross_attn, self.ucross_xattn = ImageAttention(width, heads), Gate()
        self.ucross_mlp, self.ucross_xmlp = GatedMLP(width, mlp), Gate()

    def forward(
        self,
        layer: nn.Module,
        image: Float[Tensor, "batch token width"],
        hidden_states: Float[Tensor, "batch position width"],
        *,
        attention_mask: Tensor | None,
        **named: Any,
    ) -> Float[Tensor, "batch position width"]:
        """The layer's parts, with the image between the first norm and the attention."""
        x = layer.get_submodule("input_layernorm")(hidden_states)
        x = x + self.ucross_xattn(self.ucross_attn(x, image, self._mask(attention_mask, image)))
        x = x + self.ucross_xmlp(self.ucross_mlp(x))
        attend = layer.get_submodule("self_attn")
        mixed, _ = attend(x, attention_mask=attention_mask, **named)
        hidden = hidden_states + mixed
        inner = layer.get_submodule("post_attention_layernorm")(hidden)
        return (inner if self.as_published else hidden) + layer.get_submodule("mlp")(inner)

    def _mask(
        self, mask: Tensor | None, image: Float[Tensor, "batch token width"]
    ) -> Tensor | None:
        if not self.as_published:
            return None
        if mask is None:
            raise ValueError("the published form cuts the reader's attention mask, but it has none")
        return mask[..., : image.shape[1]]


def replacing(
    cross: nn.Module, image: Float[Tensor, "batch token width"]
) -> Callable[[nn.Module], Callable[..., Tensor]]:
    """A patch's `wrap`: the reader's layer, with this image crossed in."""
    return lambda layer: partial(cross, layer, image)
