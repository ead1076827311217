"""What the teacher says of the pretraining pool, on nano's grid.

The teacher (DINOv2-S) sees each image once, at 112 px; what it said is kept in the cache folder
under the hash of its weights and of the images.
"""

import hashlib
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.models.encoders import catalog
from fusionbench.models.encoders.catalog import describe
from fusionbench.models.encoders.vit import ViTConfig, fitted
from fusionbench.records.files import cache_dir, write_atomic
from nano.pool import PoolPlan, pool

log = logging.getLogger(__name__)
NANO = ViTConfig(layers=8, dim=96, heads=4, patch=16, grid=4, size=64, mlp=384)
TEACHER_SIZE = 112
TEACHER_MIDDLE = 5
"""Where the teacher still knows the fine detail that its last layers drop."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """The pool as nano sees it, and what the teacher says of it; standardised, float16."""

    images: UInt8[Tensor, "image 64 64 3"]
    last: Float[Tensor, "image token teacher"]
    """The teacher's final-normed CLS, then its patches averaged onto nano's grid."""
    middle: Float[Tensor, "image patch more"]
    """`hs[TEACHER_MIDDLE]` of all the teacher's patches under a patch of nano, side by side."""
    counts: dict[str, int]


def lessons(plan: PoolPlan, teacher: Encoder) -> Lessons:
    """Show the whole pool to the teacher."""
    small, last, middle, counts = [], [], [], {}
    for source, images in pool(plan):
        started = time.monotonic()
        said = answers(teacher, images)
        last.append(said["last"])
        middle.append(said["middle"])
        pixels = torch.from_numpy(images)
        small.append(
            fitted(pixels, size=NANO.size, interpolation="bilinear", fit="squash", crop=1.0)
        )
        counts[source] = len(images)
        log.info("teacher: %d of %s in %.0f s", len(images), source, time.monotonic() - started)
    finals = torch.cat(last)
    return Lessons(
        images=torch.cat(small),
        last=torch.cat([standardised(finals[:, :1]), standardised(finals[:, 1:])], dim=1),
        middle=standardised(torch.cat(middle)),
        counts=counts,
    )


def standardised(
    answers: Float[Tensor, "image token channel"],
) -> Float[Tensor, "image token channel"]:
    """Each channel with mean 0 and deviation 1 over all images and tokens."""
    values = answers.float()
    values -= values.mean(dim=(0, 1), keepdim=True)
    values /= values.std(dim=(0, 1), keepdim=True) + 1e-6
    return values.half()


def answers(
    teacher: Encoder, images: UInt8[np.ndarray, "image height width 3"]
) -> dict[str, Float[Tensor, "image token channel"]]:
    """`last` and `middle` in float16, from the cache where the teacher has seen these images."""
    from safetensors.torch import load, save

    weights = describe(catalog.DINOV2).weights
    content = hashlib.sha256(f"{weights} {TEACHER_SIZE} {TEACHER_MIDDLE} {images.shape}".encode())
    content.update(images.tobytes())
    path = cache_dir("pretraining", f"{content.hexdigest()[:32]}.safetensors")
    if path.is_file():
        return load(path.read_bytes())
    said = [teach(teacher, chunk) for chunk in torch.split(torch.from_numpy(images), 64)]
    found = {
        "last": torch.cat([last for last, _ in said]).half(),
        "middle": torch.cat([middle for _, middle in said]).half(),
    }
    write_atomic(path, save(found))
    return found


@torch.no_grad()
def teach(
    teacher: Encoder, images: UInt8[Tensor, "batch height width 3"]
) -> tuple[Float[Tensor, "batch token teacher"], Float[Tensor, "batch patch more"]]:
    """The teacher's last and middle tokens on nano's grid."""
    # Three times as fast on CPUs that have it, and finer than what a pupil this small can tell.
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        states = teacher.hidden_states(images)
        final = teacher.norm(states[-1]).float()
    prefix, side = teacher.shape.prefix, teacher.shape.grid[0] // NANO.grid
    grid = {"h": NANO.grid, "w": NANO.grid, "i": side, "j": side}
    patches = reduce(final[:, prefix:], "b (h i w j) d -> b (h w) d", "mean", **grid)
    middle = states[TEACHER_MIDDLE].float()[:, prefix:]
    return (
        torch.cat([final[:, :1], patches], dim=1),
        rearrange(middle, "b (h i w j) d -> b (h w) (i j d)", **grid),
    )
