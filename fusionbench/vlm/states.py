"""Hidden states of the images of a batch: from the cache of local tasks, or made by the encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Tap
from fusionbench.encoders import features
from fusionbench.encoders.features import FeatureKey
from fusionbench.harness.stepping import States

LocalImage = tuple[str, int]
"""Task and row of the image in the task's bundle."""


@dataclass(kw_only=True)
class CachedStates:
    """Hidden states of the local tasks' images, mapped from disk by tap."""

    keys: Mapping[str, FeatureKey]
    """Task -> key of its hidden states."""
    device: torch.device
    _open: dict[tuple[str, Tap], Float[Tensor, "image token dim"]] = field(
        init=False, default_factory=dict
    )

    def of(self, images: Sequence[LocalImage]) -> States:
        """Gives the states of these images, in order, in float32 on the device."""

        def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            return torch.stack([self._tap(tap, images) for tap in taps])

        return gather

    def _tap(self, tap: Tap, images: Sequence[LocalImage]) -> Float[Tensor, "batch token dim"]:
        places: dict[str, list[int]] = {}
        for place, (task, _) in enumerate(images):
            places.setdefault(task, []).append(place)
        parts = {
            task: self._stored(task, tap)[torch.tensor([images[at][1] for at in spots])]
            for task, spots in places.items()
        }
        first = next(iter(parts.values()))
        found = first.new_empty((len(images), *first.shape[1:]))
        for task, spots in places.items():
            found[torch.tensor(spots)] = parts[task]
        return found.to(self.device, torch.float32)

    def _stored(self, task: str, tap: Tap) -> Float[Tensor, "image token dim"]:
        if (task, tap) not in self._open:
            self._open[task, tap] = features.read(self.keys[task], tap)
        return self._open[task, tap]


def encoded(encoder: Encoder, images: UInt8[Tensor, "batch height width 3"]) -> States:
    """Gives the states of these images; the encoder runs as far as the taps need, no further."""

    @torch.no_grad()
    def run(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        sources = {index: encoder.shape.source(index) for tap in taps for index in tap}
        states = {0: encoder.embed(images)}
        for index in range(1, max(layer for layer, _ in sources.values()) + 1):
            states[index] = encoder.block(index, states[index - 1])
        found = {
            index: encoder.norm(states[layer]) if normed else states[layer]
            for index, (layer, normed) in sources.items()
        }
        return torch.stack(
            [torch.stack([found[index].float() for index in tap]).mean(dim=0) for tap in taps]
        )

    return run


def blank(encoder: Encoder, device: torch.device) -> States:
    """The states of one image that is no image: fixed numbers of unit scale.

    A batch of text alone runs a fusion on them times 0, so that every process has its gradients.
    """
    count = encoder.shape.tokens * encoder.shape.dim
    values = torch.sin(torch.arange(1, count + 1, device=device, dtype=torch.float32))

    def run(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        return values.reshape(1, 1, encoder.shape.tokens, -1).expand(len(taps), 1, -1, -1)

    return run
