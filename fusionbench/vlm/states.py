"""Hidden states of the images of a batch: from the cache of local tasks, or made by the encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.benchmarks import Picture
from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Tap
from fusionbench.encoders import features
from fusionbench.encoders.features import FeatureKey
from fusionbench.harness.stepping import States
from fusionbench.vlm.conversations import Cached
from fusionbench.vlm.pictures import ReadAhead


@dataclass(kw_only=True)
class ImageStates:
    """Hidden states of any images."""

    keys: Mapping[str, FeatureKey]
    """Task -> key of its cached hidden states."""
    encoder: Encoder
    pixels: ReadAhead
    device: torch.device
    _open: dict[tuple[str, Tap], Float[Tensor, "image token dim"]] = field(
        init=False, default_factory=dict
    )

    def of(self, images: Sequence[Picture | Cached]) -> States:
        """Gives the states of these images, in order, in float32; of none, those of a blank."""
        if not images:
            return blank(self.encoder, self.device)
        places: dict[str, list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(image.task if isinstance(image, Cached) else "", []).append(place)
        pictures = [image for image in images if isinstance(image, Picture)]
        running = encoded(self.encoder, [self._opened(one) for one in pictures])

        def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            shape = self.encoder.shape
            size = (len(taps), len(images), shape.tokens, shape.dim)
            found = torch.empty(size, device=self.device)
            for task, spots in places.items():
                if task:
                    rows = torch.tensor([_row(images[spot]) for spot in spots])
                    part = torch.stack([self._stored(task, tap)[rows] for tap in taps])
                else:
                    part = running(taps)
                found[:, torch.tensor(spots)] = part.to(self.device, torch.float32)
            return found

        return gather

    def expect(self, images: Iterable[Picture | Cached]) -> None:
        """Announce images of the coming steps."""
        self.pixels.expect(image for image in images if isinstance(image, Picture))

    def _opened(self, picture: Picture) -> UInt8[Tensor, "1 height width 3"]:
        return torch.from_numpy(np.array(self.pixels(picture)))[None].to(self.device)

    def _stored(self, task: str, tap: Tap) -> Float[Tensor, "image token dim"]:
        if (task, tap) not in self._open:
            self._open[task, tap] = features.read(self.keys[task], tap)
        return self._open[task, tap]


def _row(image: Picture | Cached) -> int:
    return image.row if isinstance(image, Cached) else -1


def encoded(encoder: Encoder, images: Sequence[UInt8[Tensor, "1 height width 3"]]) -> States:
    """Gives the states of images of any sizes; the encoder runs as far as the taps need."""

    @torch.no_grad()
    def run(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        sources = {index: encoder.shape.source(index) for tap in taps for index in tap}
        states = {0: torch.cat([encoder.embed(image) for image in images])}
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
