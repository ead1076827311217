"""Encoder, method and projector as in a multimodal model, and the bare encoder with a projector.

Nothing is cached: the encoder runs in every call. The bare encoder runs as many blocks as the
method needs, so the difference is the cost of the method.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Fusion, InEncoderFusion, Method, Tap
from fusionbench.api.types import Fused
from fusionbench.cost import shapes as language
from fusionbench.harness.frozen import next_step
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse, needs_encoder
from fusionbench.readers.attentive import Projector
from fusionbench.readers.build import reader_shape
from fusionbench.readers.injection import project
from fusionbench.records.cell import Setting


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

    def prefilled(self, model: language.LanguageModel) -> Float[Tensor, "batch position width"]:
        """Hidden states of a language model with the method."""
        found = self._fuse()
        return model(project(found, self.projector), found, self.projector)

    def bare_prefilled(
        self, model: language.LanguageModel
    ) -> Float[Tensor, "batch position width"]:
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
    reader = language.SHAPE if width == language.SHAPE.width else reader_shape("decoder", width)
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
