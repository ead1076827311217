"""Encoders and a language model at real scale with random weights or on `meta`.

Latency and operations depend on shapes only. The blocks are those of `encoders/vit.py`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.api.types import Fused, ReaderShape
from fusionbench.cost import counting as flops
from fusionbench.encoders.build import build
from fusionbench.encoders.catalog import describe
from fusionbench.encoders.vit import ViT, ViTConfig
from fusionbench.readers.injection import Inside, Projector, injected

PREFIX = "shape:"
SHAPES: Mapping[str, ViTConfig] = {
    "shape:clip-vit-l-14-336": ViTConfig(
        layers=24, dim=1024, heads=16, patch=14, grid=24, size=336, mlp=4096
    ),
    "shape:vit-b-16-224": ViTConfig(
        layers=12, dim=768, heads=12, patch=16, grid=14, size=224, mlp=3072
    ),
    "shape:dinov2-s-14": ViTConfig(
        layers=12, dim=384, heads=6, patch=14, grid=16, size=224, mlp=1536, layer_scale=True
    ),
}
RANDOM = "random"
"""Fingerprint of random weights."""


def subject(
    name: str, *, image_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Encoder, str]:
    """A frozen encoder and the fingerprint of its weights. UserError for an unknown name."""
    if name.startswith(PREFIX):
        if name not in SHAPES:
            known = ", ".join(SHAPES)
            raise UserError(f"no shape {name!r}{did_you_mean(name, SHAPES)}", f"known: {known}")
        with device:
            encoder: Encoder = ViT(SHAPES[name], image_size=image_size)
        _draw(encoder)
        encoder.freeze()
        return encoder.to(dtype=dtype), RANDOM
    try:
        weights = describe(name, image_size=image_size).weights
        on = torch.device("cpu") if device.type == "meta" else device
        return build(name, image_size=image_size, device=on, dtype=dtype).to(device), weights
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), f"or a shape: {', '.join(SHAPES)}") from error


def _draw(encoder: Encoder) -> None:
    """Weights of normal size: latency may depend on denormal numbers."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1 and parameter.device.type != "meta":
                parameter.normal_(std=0.02)


SHAPE = ReaderShape(layers=32, width=4096, heads=32, mlp=11008)
"""Layers of LLaVA-1.5-7B's language model (Liu et al. 2024, arXiv 2310.03744)."""
TEXT_TOKENS = 64


class LanguageModel(nn.Module):
    """Prefill of a frozen random Llama: image tokens, then text; 13 GiB in bfloat16."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, *, shape: ReaderShape = SHAPE
    ) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        # Type checkers do not know the keywords of these classes.
        make: Any = LlamaConfig
        build: Any = LlamaModel
        config = make(
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            attn_implementation="sdpa",
        )
        with device, _default(dtype):
            self.model = build(config)
        self.model.eval().requires_grad_(requires_grad=False)
        self.text: Tensor
        text = torch.zeros(1, TEXT_TOKENS, shape.width, device=device, dtype=dtype)
        self.register_buffer("text", text)

    def forward(
        self,
        image: Float[Tensor, "batch token width"],
        fused: Fused | None = None,
        projector: Projector | None = None,
    ) -> Float[Tensor, "batch position width"]:
        """Last hidden states, with the injections and patches of `fused`."""
        sequence = torch.cat([image, self.text.expand(len(image), -1, -1)], dim=1)
        length = sequence.shape[1]
        # On meta the mask is given: transformers would read values to build one.
        on_meta = sequence.is_meta
        mask = sequence.new_zeros(1, 1, length, length) if on_meta else None
        named = {"inputs_embeds": sequence, "attention_mask": mask, "use_cache": False}
        if fused is None or projector is None or not fused.reaches_inside:
            return self._last(named)
        inside = Inside(
            fused=fused,
            layers=len(self.model.layers),
            place=lambda values: F.pad(values, (0, 0, 0, length - values.shape[1])),
            projector=projector,
        )
        with injected(self.model, inside):
            return self._last(named)

    def _last(self, named: dict[str, Any]) -> Float[Tensor, "batch position width"]:
        output: Tensor = self.model(**named).last_hidden_state
        return output


@cache
def nowhere(dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The language model on `meta`, built once per process."""
    return LanguageModel(torch.device("meta"), dtype)


@cache
def operations(tokens: int) -> int:
    """Operations of the prefill of one image of this many tokens."""
    with torch.no_grad():
        image = torch.zeros(1, tokens, SHAPE.width, device="meta")
        return flops.count(lambda: nowhere()(image))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Default type of new parameters; a float32 copy would take 26 GiB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
