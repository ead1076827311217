"""How `nano` was made: a small ViT distilled from DINOv2-S.

`python -m fusionbench.encoders.pretrain --out FOLDER --minutes 15`. The teacher sees each image
once, at 112 px; its final-normed CLS token and its patches, averaged 2 x 2 onto nano's 4 x 4 grid,
are what a linear head predicts from nano's final-normed tokens. A second linear head redraws each
patch's pixels from an early hidden state, so that fine detail lives early and meaning late. Both
heads are thrown away. Suffixes: B batch, N token, T teacher's width.
"""

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.cache import cache_dir, write_atomic
from fusionbench.encoders import own
from fusionbench.encoders.build import build
from fusionbench.encoders.catalog import describe
from fusionbench.encoders.contract import Encoder
from fusionbench.encoders.images import prepare
from fusionbench.encoders.pool import PoolPlan, pool
from fusionbench.encoders.vit import ViT, ViTConfig
from fusionbench.seeding import seed_of

log = logging.getLogger(__name__)
NANO = ViTConfig(layers=8, dim=96, heads=4, patch=16, grid=4, size=64, mlp=384)
TEACHER_SIZE = 112


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the result, beside the pool and the time."""

    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    detail_layer: int = 2
    """The pixels are redrawn from this hidden state."""
    detail_weight: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """The pool as nano sees it, and what the teacher says of it."""

    images: UInt8[Tensor, "image 64 64 3"]
    targets: Float[Tensor, "image token teacher"]
    """float16; standardised per channel, CLS and patches apart."""
    counts: dict[str, int]


def lessons(plan: PoolPlan, teacher: Encoder) -> Lessons:
    """Show the whole pool to the teacher."""
    small, said, counts = [], [], {}
    for source, images in pool(plan):
        started = time.monotonic()
        said.append(answers(teacher, images))
        small += [shrunk(chunk) for chunk in torch.split(torch.from_numpy(images), 64)]
        counts[source] = len(images)
        log.info("teacher: %d of %s in %.0f s", len(images), source, time.monotonic() - started)
    targets = torch.cat(said).float()
    for part in (targets[:, :1], targets[:, 1:]):
        part -= part.mean(dim=(0, 1), keepdim=True)
        part /= part.std(dim=(0, 1), keepdim=True) + 1e-6
    return Lessons(images=torch.cat(small), targets=targets.half(), counts=counts)


def answers(
    teacher: Encoder, images: UInt8[np.ndarray, "image height width 3"]
) -> Float[Tensor, "image token teacher"]:
    """The teacher's tokens in float16, from the cache where it has seen these images before."""
    from safetensors.torch import load, save

    weights = describe(own.DINOV2).weights
    content = hashlib.sha256(f"{weights} {TEACHER_SIZE} {images.shape}".encode())
    content.update(images.tobytes())
    path = cache_dir("pretraining", f"{content.hexdigest()[:32]}.safetensors")
    if path.is_file():
        return load(path.read_bytes())["answers"]
    said = [teach(teacher, chunk).half() for chunk in torch.split(torch.from_numpy(images), 64)]
    found = torch.cat(said) if said else torch.zeros(0, 1 + NANO.grid**2, teacher.shape.dim).half()
    write_atomic(path, save({"answers": found}))
    return found


def shrunk(
    images: UInt8[Tensor, "batch height width 3"],
) -> UInt8[Tensor, "batch 64 64 3"]:
    """The images at nano's size."""
    pixels = prepare(images, size=NANO.size, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float32)
    return rearrange((pixels * 255).round().to(torch.uint8), "b c h w -> b h w c")


@torch.no_grad()
def teach(
    teacher: Encoder, images: UInt8[Tensor, "batch height width 3"]
) -> Float[Tensor, "batch token teacher"]:
    """The teacher's last tokens on nano's grid."""
    tokens = teacher.norm(teacher.hidden_states(images)[-1])
    prefix, side = teacher.shape.prefix, teacher.shape.grid[0] // NANO.grid
    patches = reduce(
        tokens[:, prefix:],
        "b (h i w j) d -> b (h w) d",
        "mean",
        h=NANO.grid,
        w=NANO.grid,
        i=side,
        j=side,
    )
    return torch.cat([tokens[:, :1], patches], dim=1)


class Pupil(nn.Module):
    """nano with its two heads."""

    def __init__(self, recipe: Recipe, *, teacher_dim: int) -> None:
        super().__init__()
        torch.manual_seed(seed_of("pretrain", recipe.seed))
        self.recipe = recipe
        self.encoder = ViT(NANO)
        initialise(self.encoder)
        self.meaning = nn.Linear(NANO.dim, teacher_dim)
        self.detail = nn.Linear(NANO.dim, 3 * NANO.patch**2)

    def forward(
        self,
        images: UInt8[Tensor, "batch 64 64 3"],
        targets: Float[Tensor, "batch token teacher"],
    ) -> Float[Tensor, ""]:
        """Distillation loss plus the weighted loss of the pixels."""
        states = [self.encoder.embed(images)]
        for index in range(1, NANO.layers + 1):
            states.append(self.encoder.block(index, states[-1]))
        said_BNT = self.meaning(self.encoder.norm(states[-1]))
        error = F.mse_loss(said_BNT[:, 0], targets[:, 0]) + F.mse_loss(said_BNT, targets)
        drawn = self.detail(states[self.recipe.detail_layer][:, 1:])
        return error / 2 + self.recipe.detail_weight * F.mse_loss(drawn, patch_pixels(images))


def patch_pixels(
    images: UInt8[Tensor, "batch 64 64 3"],
) -> Float[Tensor, "batch patch pixel"]:
    """Normalised pixels, patch by patch."""
    pixels = prepare(images, size=NANO.size, mean=NANO.mean, std=NANO.std, dtype=torch.float32)
    side = NANO.patch
    return rearrange(pixels, "b c (h i) (w j) -> b (h w) (c i j)", i=side, j=side)


def initialise(encoder: ViT) -> None:
    """Variance-preserving normal weights, zero biases; the positions small."""
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            learned = name.startswith(("cls", "position", "registers"))
            nn.init.normal_(parameter, std=0.02 if learned else fan_in**-0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def train(data: Lessons, recipe: Recipe, *, steps: int) -> ViT:
    """Distil: batches drawn with replacement, AdamW, warm-up and cosine."""
    pupil = Pupil(recipe, teacher_dim=data.targets.shape[-1])
    optimiser = torch.optim.AdamW(
        pupil.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    draw = torch.Generator().manual_seed(seed_of("pretrain batches", recipe.seed))
    started = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * rate(step / steps, recipe.warmup)
        rows = torch.randint(len(data.images), (recipe.batch,), generator=draw)
        loss = pupil(data.images[rows], data.targets[rows].float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 0:
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
    data = lessons(plan, build(own.DINOV2, image_size=TEACHER_SIZE))
    steps = asked.steps or steps_in(asked.minutes, data, recipe)
    log.info("%d steps; %s", steps, data.counts)
    started = time.monotonic()
    encoder = train(data, recipe, steps=steps)
    card = describe(own.DINOV2)
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
    parser = argparse.ArgumentParser(prog="python -m fusionbench.encoders.pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder for nano.safetensors")
    parser.add_argument("--skip", nargs="*", default=[], help="tasks whose images are not used")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, default=0)
    length.add_argument("--minutes", type=float, default=0, help="as many steps as fit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
