"""Encoder, method and projector as in a multimodal model, at the scale of a real one.

Latency and operations depend on shapes only. The blocks are those of `models/encoders/vit.py`.

Nothing is cached: the encoder runs in every call. The bare encoder runs as many blocks as the
method needs, so the difference is the cost of the method.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.api.fusion import Fusion, InEncoderFusion, Method, Tap
from fusionbench.api.types import Fused, ReaderShape
from fusionbench.harness import measure
from fusionbench.harness.frozen import next_step
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse, needs_encoder
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import ViT, ViTConfig
from fusionbench.models.readers.attentive import Projector
from fusionbench.models.readers.build import reader_shape
from fusionbench.models.readers.injection import Inside, Projection, injected, project
from fusionbench.records.cell import Setting

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


class RandomLlama(nn.Module):
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
        projector: Projection | None = None,
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
def nowhere(dtype: torch.dtype = torch.float32) -> RandomLlama:
    """The language model on `meta`, built once per process."""
    return RandomLlama(torch.device("meta"), dtype)


@cache
def operations(tokens: int) -> int:
    """Operations of the prefill of one image of this many tokens."""
    with torch.no_grad():
        image = torch.zeros(1, tokens, SHAPE.width, device="meta")
        return measure.count(lambda: nowhere()(image))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Default type of new parameters; a float32 copy would take 26 GiB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(kw_only=True)
class Pipeline:
    """Images and a question's vector in, projected tokens out."""

    encoder: Encoder
    fusion: Method
    projector: Projector
    alone: Projector
    """Projector of the bare encoder: one layer wide."""
    images: UInt8[Tensor, "batch height width 3"]
    query: Float[Tensor, "batch query_dim"]
    reaches_inside: bool = False
    """Set by a call: whether the method injects into the language model's layers."""

    @property
    def blocks(self) -> int:
        """The last block that the method needs."""
        if isinstance(self.fusion, InEncoderFusion):
            return self.fusion.depth
        taps = self.fusion.taps if isinstance(self.fusion, Fusion) else ()
        layers = (self.encoder.shape.source(index)[0] for tap in taps for index in tap)
        return max(layers, default=0)

    def fused(self) -> Float[Tensor, "batch token width"]:
        """Projected tokens with the method; gradients pass the encoder only where it writes."""
        found = self._fuse()
        self.reaches_inside = found.reaches_inside
        tokens = project(found, self.projector)
        for injection in found.injections:
            values = injection.values
            placed = self.projector(values) if injection.through_projector else values
            # The language model adds each to a hidden state at the image's positions.
            tokens = tokens + placed if placed.shape == tokens.shape else tokens + placed.mean()
        return tokens

    def prefilled(self, model: RandomLlama) -> Float[Tensor, "batch position width"]:
        """Hidden states of a language model with the method."""
        found = self._fuse()
        return model(project(found, self.projector), found, self.projector)

    def bare_prefilled(self, model: RandomLlama) -> Float[Tensor, "batch position width"]:
        """Hidden states of the same language model without the method."""
        return model(self.bare())

    def bare(self) -> Float[Tensor, "batch token width"]:
        """Projected tokens of the last of the same number of blocks, without prefix."""
        tokens = self._states({self.blocks})[self.blocks]
        return self.alone(tokens[:, self.encoder.shape.prefix :])

    def _fuse(self) -> Fused:
        def states(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            found = self._states({index for tap in taps for index in tap})
            sets = [[found[index] for index in tap] for tap in taps]
            return torch.stack([s[0] if len(s) == 1 else torch.stack(s).mean(0) for s in sets])

        return fuse(self.fusion, states, self.query, self.encoder)

    @torch.no_grad()
    def _states(self, wanted: Set[int]) -> dict[int, Float[Tensor, "batch token dim"]]:
        """Hidden states of these indices of taps; no other is kept in memory."""
        shape, tokens = self.encoder.shape, self.encoder.embed(self.images)
        found = {}
        for layer in range(max(shape.source(index)[0] for index in wanted) + 1):
            if layer:
                tokens = self.encoder.block(layer, tokens)
            if layer in wanted:
                found[layer] = tokens
            if (index := shape.normed_layer(layer)) in wanted:
                found[index] = self.encoder.norm(tokens)
        return found

    def trained(self, *, bare: bool = False) -> list[nn.Parameter]:
        """Parameters that a training step updates."""
        modules = [self.alone] if bare else [self.fusion, self.projector]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def in_encoder(self) -> bool:
        """Whether gradients pass through the frozen encoder."""
        return needs_encoder(self.fusion)


def build_pipeline(
    method: type[Method],
    settings: dict[str, Setting],
    encoder: Encoder,
    *,
    width: int,
    batch: int,
) -> Pipeline:
    """A pipeline on the encoder's device; the question is as wide as the projector's output.

    Raises Unsupported for a method that does not fit this encoder.
    """
    parameter = next((p for p in encoder.parameters()), torch.zeros(()))
    device, dtype = parameter.device, parameter.dtype
    reader = SHAPE if width == SHAPE.width else reader_shape("decoder", width)
    shape = replace(encoder.shape, query_dim=width, reader=reader, mlp=encoder.mlp)
    with device:
        fusion = build_fusion(method, settings, shape).to(device=device, dtype=dtype)
        projector = Projector(fusion.out_dim, width).to(dtype)
        alone = Projector(shape.dim, width).to(dtype)
        images = torch.zeros(batch, encoder.size, encoder.size, 3, dtype=torch.uint8)
        query = torch.zeros(batch, width, dtype=dtype)
    if device.type != "meta":
        rng = torch.Generator(device).manual_seed(0)
        images.random_(0, 256, generator=rng)
        query.normal_(generator=rng)
    return Pipeline(
        encoder=encoder,
        fusion=fusion,
        projector=projector,
        alone=alone,
        images=images,
        query=query,
    )


def training_step(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], None]:
    """Forward, backward and AdamW step; the loss is the tokens' mean square."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True) if parameters else None

    def step() -> None:
        next_step()
        torch.autograd.backward(run().float().square().mean())
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return step


def compiled(run: Callable[[], Tensor], *, mode: str = "default") -> Callable[[], Tensor]:
    """`run` under `torch.compile`: encoder, method and projector in one graph."""
    fast: Callable[[], Tensor] = torch.compile(run, mode=mode, dynamic=False)

    def call() -> Tensor:
        next_step()
        return fast()

    return call
