"""Encoder, method and projector as they run in a multimodal model, and the same without a method.

Nothing is cached here: the encoder runs in every call, as it does when a model is used. The bare
encoder runs as many blocks as the method needs, so that a difference is the method's own.
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
    """Of one layer: what stands behind the bare encoder."""
    images: UInt8[Tensor, "batch height width 3"]
    query: Float[Tensor, "batch query_dim"]
    reaches_inside: bool = False
    """After a call: whether the method also acts in the language model's layers."""

    @property
    def blocks(self) -> int:
        """The last block that the method needs."""
        if isinstance(self.fusion, InEncoderFusion):
            return self.fusion.depth
        taps = self.fusion.taps if isinstance(self.fusion, Fusion) else ()
        # Behind the last block stands one more tap, the final norm.
        last = max((index for tap in taps for index in tap), default=0)
        return min(last, self.encoder.shape.layers)

    def fused(self) -> Float[Tensor, "batch token width"]:
        """With the method. Gradients pass through the encoder only where the method writes."""
        found = self._fuse()
        self.reaches_inside = found.reaches_inside
        tokens = project(found, self.projector)
        for injection in found.injections:
            values = injection.values
            placed = self.projector(values) if injection.through_projector else values
            # Each is added to a hidden state of the language model, at the image's positions.
            tokens = tokens + placed if placed.shape == tokens.shape else tokens + placed.mean()
        return tokens

    def prefilled(self, model: language.LanguageModel) -> Float[Tensor, "batch position width"]:
        """With the method, and on through a language model, in whose layers it may act."""
        found = self._fuse()
        return model(project(found, self.projector), found, self.projector)

    def bare_prefilled(
        self, model: language.LanguageModel
    ) -> Float[Tensor, "batch position width"]:
        """Without it, and on through the same language model."""
        return model(self.bare())

    def bare(self) -> Float[Tensor, "batch token width"]:
        """Without it: the last of the same number of blocks, without CLS."""
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
        """These hidden states; no other is kept, as none would be where a model is used."""
        found, tokens, layers = {}, self.encoder.embed(self.images), self.encoder.shape.layers
        for index in range(max(wanted) + 1):
            if 0 < index <= layers:
                tokens = self.encoder.block(index, tokens)
            if index in wanted:
                found[index] = tokens if index <= layers else self.encoder.norm(tokens)
        return found

    def trained(self, *, bare: bool = False) -> list[nn.Parameter]:
        """What a training step moves."""
        modules = [self.alone] if bare else [self.fusion, self.projector]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def in_encoder(self) -> bool:
        """True if gradients pass through the frozen encoder."""
        return needs_encoder(self.fusion)


def build_pipeline(
    method: type[Method],
    settings: dict[str, Setting],
    encoder: Encoder,
    *,
    width: int,
    batch: int,
) -> Pipeline:
    """For an encoder where it is; the question is as wide as the projector's output.

    Raises Unsupported for a method that does not fit this encoder.
    """
    parameter = next((p for p in encoder.parameters()), torch.zeros(()))
    device, dtype = parameter.device, parameter.dtype
    reader = language.SHAPE if width == language.SHAPE.width else reader_shape("decoder", width)
    shape = replace(encoder.shape, query_dim=width, reader=reader)
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
    """Forward, backward and AdamW; the loss is the tokens' mean square, the cheapest there is."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True) if parameters else None

    def step() -> None:
        next_step()
        torch.autograd.backward(run().float().square().mean())
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return step


def compiled(run: Callable[[], Tensor], *, mode: str = "default") -> Callable[[], Tensor]:
    """A call without arguments under `torch.compile`: encoder, method and projector, one graph."""
    fast: Callable[[], Tensor] = torch.compile(run, mode=mode, dynamic=False)

    def call() -> Tensor:
        next_step()
        return fast()

    return call
