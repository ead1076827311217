"""How `nano` was made: a small ViT distilled from DINOv2-S.

`PYTHONPATH=pretraining python -m nano.train --out FOLDER --minutes 15`. Linear heads,
thrown away afterwards, make three hidden states tell different things, from fine to coarse: an
early one the pixels of its patch; a middle one what the teacher's middle layer says of each part
of the patch; the last, after the final norm, the teacher's last layer, averaged over the patch.
Suffixes: B batch, N token, T teacher's width.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.seeding import seed_of
from fusionbench.models.encoders import catalog
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import ViT, prepare
from fusionbench.records.files import write_atomic
from nano.detail import detail, detail_told
from nano.lessons import NANO, TEACHER_SIZE, Lessons, lessons
from nano.pool import PoolPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the result, beside the pool and the time."""

    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    pixel_layer: int = 2
    """The pixels are redrawn from this hidden state."""
    pixel_weight: float = 0.3
    middle_layer: int = 4
    """The teacher's middle layer is predicted from this hidden state."""
    middle_weight: float = 0.5
    common_weight: float = 0.5
    """Weight of what all patches of a layer have in common: readers normalise tokens, and a large
    constant part would leave little of them."""
    detail_weight: float = 0.12
    """Weight of the share of local detail (`detail.py`) that the last hidden state still tells
    linearly: large encoders give fine detail up on the way to meaning, one this small has to be
    told to."""
    seed: int = 0


class Pupil(nn.Module):
    """nano with its three heads."""

    def __init__(self, recipe: Recipe, *, last_dim: int, middle_dim: int) -> None:
        super().__init__()
        torch.manual_seed(seed_of("pretrain", recipe.seed))
        self.recipe = recipe
        self.encoder = ViT(NANO)
        initialise(self.encoder)
        self.last = nn.Linear(NANO.dim, last_dim)
        self.middle = nn.Linear(NANO.dim, middle_dim)
        self.pixels = nn.Linear(NANO.dim, 3 * NANO.patch**2)

    def forward(
        self,
        images: UInt8[Tensor, "batch 64 64 3"],
        last: Float[Tensor, "batch token teacher"],
        middle: Float[Tensor, "batch patch more"],
    ) -> Float[Tensor, ""]:
        """Squared errors (last layer, half of it the CLS token; middle layer; pixels), and what
        the patches have in common.
        """
        states = [self.encoder.embed(images)]
        for index in range(1, NANO.layers + 1):
            states.append(self.encoder.block(index, states[-1]))
        said_BNT = self.last(self.encoder.norm(states[-1]))
        error = (F.mse_loss(said_BNT[:, 0], last[:, 0]) + F.mse_loss(said_BNT, last)) / 2
        recalled = self.middle(states[self.recipe.middle_layer][:, 1:])
        error = error + self.recipe.middle_weight * F.mse_loss(recalled, middle)
        drawn = self.pixels(states[self.recipe.pixel_layer][:, 1:])
        error = error + self.recipe.pixel_weight * F.mse_loss(drawn, patch_pixels(images))
        told = detail_told(states[-1], detail(patch_images(images)))
        error = error + self.recipe.detail_weight * told
        return error + self.recipe.common_weight * common_part(states[1:])


def common_part(states: Sequence[Float[Tensor, "batch token dim"]]) -> Float[Tensor, ""]:
    """Share of a normalised patch's energy that all patches share, averaged over layers, 0 to 1."""
    shared = [F.layer_norm(s[:, 1:], s.shape[-1:]).mean(dim=(0, 1)).square().mean() for s in states]
    return torch.stack(shared).mean()


def patch_pixels(
    images: UInt8[Tensor, "batch 64 64 3"],
) -> Float[Tensor, "batch patch pixel"]:
    """Normalised pixels, patch by patch."""
    return rearrange(patch_images(images), "b n c i j -> b n (c i j)")


def patch_images(
    images: UInt8[Tensor, "batch 64 64 3"],
) -> Float[Tensor, "batch patch channel height width"]:
    """Normalised patches as small pictures."""
    pixels = prepare(images, size=NANO.size, mean=NANO.mean, std=NANO.std, dtype=torch.float32)
    side = NANO.patch
    return rearrange(pixels, "b c (h i) (w j) -> b (h w) c i j", i=side, j=side)


def initialise(encoder: ViT) -> None:
    """Variance-preserving normal weights, zero biases; the positions small.

    What is added to the residual stream is divided by sqrt(2 L), so that the stream keeps its size.
    """
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            learned = name.startswith(("cls", "position", "registers"))
            nn.init.normal_(parameter, std=0.02 if learned else fan_in**-0.5)
            if name.endswith(("out.weight", "fc2.weight")):
                parameter.data /= math.sqrt(2 * encoder.shape.layers)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def train(data: Lessons, recipe: Recipe, *, steps: int) -> ViT:
    """Distil: batches drawn with replacement, AdamW, warm-up and cosine."""
    pupil = Pupil(recipe, last_dim=data.last.shape[-1], middle_dim=data.middle.shape[-1])
    optimiser = torch.optim.AdamW(
        pupil.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    draw = torch.Generator().manual_seed(seed_of("pretrain batches", recipe.seed))
    started = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * rate(step / steps, recipe.warmup)
        rows = torch.randint(len(data.images), (recipe.batch,), generator=draw)
        loss = pupil(data.images[rows], data.last[rows].float(), data.middle[rows].float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 0 or step == steps - 1:
            log.info("step %d, %.0f s, loss %.4f", step, time.monotonic() - started, loss.item())
    return pupil.encoder


def steps_in(minutes: float, data: Lessons, recipe: Recipe) -> int:
    """Steps that fit into so many minutes here, from the time of a few."""
    train(data, recipe, steps=3)
    started = time.monotonic()
    train(data, recipe, steps=20)
    return max(1, round(20 * 60 * minutes / (time.monotonic() - started)))


def rate(spent: float, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to 0."""
    if spent < warmup:
        return max(spent / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (spent - warmup) / (1 - warmup)))


def save(encoder: ViT, folder: Path, *, training: Mapping[str, Any]) -> None:
    """nano.json and nano.safetensors, the weights last."""
    from safetensors.torch import save as serialised

    config = {
        "architecture": asdict(encoder.config),
        "source": f"distilled from {training['teacher']}; see NANO.md",
        "training": training,
    }
    write_atomic(folder / "nano.json", (json.dumps(config, indent=2) + "\n").encode())
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    write_atomic(folder / "nano.safetensors", serialised(state))


def main() -> None:
    """Pretrain and save; see the module's docstring for the command."""
    asked = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe, plan = Recipe(), PoolPlan(skip=tuple(asked.skip))
    data = lessons(plan, build(catalog.DINOV2, image_size=TEACHER_SIZE))
    steps = asked.steps or steps_in(asked.minutes, data, recipe)
    log.info("%d steps; %s", steps, data.counts)
    started = time.monotonic()
    encoder = train(data, recipe, steps=steps)
    card = describe(catalog.DINOV2)
    training = {
        "teacher": card.source,
        "teacher_weights": card.weights,
        "steps": steps,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "recipe": asdict(recipe),
        "skip": list(plan.skip),
        "images": data.counts,
    }
    save(encoder, asked.out, training=training)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m nano.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for nano.safetensors")
    parser.add_argument("--skip", nargs="*", default=[], help="tasks whose images are not used")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, default=0)
    length.add_argument("--minutes", type=float, default=0, help="as many steps as fit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
