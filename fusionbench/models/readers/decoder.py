"""A small causal transformer decoder, trained from scratch like the attentive reader.

    [projected image tokens ; question tokens ; answer] -> L layers -> logits at the last position
The layers and the names of their parts are Llama's (RMSNorm, rotary positions, gated MLP), so that
a fusion acts inside them as it would inside a language model.
"""

from collections.abc import Iterable

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.modules import GatedMLP, Heads, sdpa
from fusionbench.api.types import Fused, ReaderShape
from fusionbench.models.readers.attentive import Projector
from fusionbench.models.readers.injection import Inside, project

_HEADS = 4
_THETA = 10000.0
_EPS = 1e-6
Rotation = tuple[Float[Tensor, "batch position channel"], Float[Tensor, "batch position channel"]]
"""Cosines and sines of the positions' angles."""


def decoder_shape(width: int, layers: int) -> ReaderShape:
    """Shape of a decoder; ValueError if the width cannot be split into heads."""
    if width % (2 * _HEADS):
        raise ValueError(f"the decoder's width must be a multiple of {2 * _HEADS}, got {width}")
    return ReaderShape(layers=layers, width=width, heads=_HEADS, mlp=2 * width)


class DecoderReader(nn.Module):
    """Logits over the closed answer set from fused tokens and a question."""

    def __init__(self, in_dim: int, shape: ReaderShape, *, query_dim: int, answers: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(query_dim, shape.width)
        self.answer = nn.Parameter(torch.randn(shape.width))
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=_EPS)
        self.classify = nn.Linear(shape.width, answers)
        # Last, so that methods of different widths share all other initial values.
        self.projector = Projector(in_dim, shape.width)

    def forward(
        self,
        fused: Fused,
        question: Float[Tensor, "batch length query_dim"],
        mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch answer"]:
        """Logits over the answers."""
        image = project(fused, self.projector)
        answer = repeat(self.answer, "d -> b 1 d", b=len(image))
        hidden = torch.cat([image, self.embed(question), answer], dim=1)
        seen = F.pad(F.pad(mask, (image.shape[1], 0), value=True), (0, 1), value=True)
        hidden = run_layers(self.layers, self.shape, hidden, seen, fused, self.projector)
        return self.classify(self.norm(hidden[:, -1]))


def run_layers(  # noqa: PLR0913
    layers: Iterable[nn.Module],
    shape: ReaderShape,
    hidden: Float[Tensor, "batch position width"],
    seen: Bool[Tensor, "batch position"],
    fused: Fused,
    projector: nn.Module,
) -> Float[Tensor, "batch position width"]:
    """Hidden states behind the last layer, with the fusion's injections and patches.

    The image comes first in the sequence; `seen` is False at padding.
    """
    length = hidden.shape[1]
    inside = Inside(
        fused=fused,
        layers=shape.layers,
        place=lambda values: _in_front(values, length),
        projector=projector,
    )
    look = causal(seen)
    rotation = rotations(seen, shape.width // shape.heads)
    for index, layer in enumerate(layers):
        run = inside.around(index, layer)
        hidden = run(hidden, attention_mask=look, position_embeddings=rotation)
    return hidden


class DecoderLayer(nn.Module):
    """One layer of Llama: h + SA(RMSNorm(h)), then h + MLP(RMSNorm(h))."""

    def __init__(self, shape: ReaderShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=_EPS)
        self.self_attn = SelfAttention(shape.width, shape.heads)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=_EPS)
        self.mlp = GatedMLP(shape.width, shape.mlp)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch position width"],
        *,
        attention_mask: Bool[Tensor, "batch 1 asking asked"],
        position_embeddings: Rotation,
    ) -> Float[Tensor, "batch position width"]:
        """The layer's output."""
        mixed, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
        )
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class SelfAttention(Heads):
    """Attention with rotary positions."""

    def forward(
        self,
        hidden_states: Float[Tensor, "batch position width"],
        *,
        attention_mask: Bool[Tensor, "batch 1 asking asked"],
        position_embeddings: Rotation,
    ) -> tuple[Float[Tensor, "batch position width"], None]:
        """Attended values and None in place of an attention map, as in transformers."""
        query, key, value = (
            self.split(part(hidden_states)) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (_rotated(part, position_embeddings) for part in (query, key))
        mixed = sdpa(query, key, value, attention_mask)
        return self.joined(mixed), None


def causal(seen: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch 1 asking asked"]:
    """Causal attention mask without padding; True = visible."""
    length = seen.shape[1]
    back = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    return back & seen[:, None, None]


def rotations(seen: Bool[Tensor, "batch position"], channels: int) -> Rotation:
    """Cosines and sines of the rotary angles; padding does not count as a position."""
    positions = seen.to(torch.float32).cumsum(dim=1) - 1
    steps = torch.arange(0, channels, 2, device=seen.device, dtype=torch.float32) / channels
    angles = positions[..., None] * _THETA**-steps
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotated(
    heads: Float[Tensor, "batch head position channel"], rotation: Rotation
) -> Float[Tensor, "batch head position channel"]:
    first, second = heads.chunk(2, dim=-1)
    cosines, sines = (part[:, None].to(heads.dtype) for part in rotation)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines


def _in_front(
    values: Float[Tensor, "batch token width"], length: int
) -> Float[Tensor, "batch position width"]:
    return F.pad(values, (0, 0, 0, length - values.shape[1]))
