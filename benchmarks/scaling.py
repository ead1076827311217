"""Time against tokens and blocks: a training step of Mema and of a mix, over the bare encoder.

python benchmarks/scaling.py --device cuda
"""

import argparse

import torch
from rows import Row, chosen_device, finish
from workload import find

from fusionbench.costs.pipeline import build_pipeline, training_step
from fusionbench.costs.timing import interleaved
from fusionbench.encoders.vit import ViT, ViTConfig

TOKENS = (64, 144, 256, 576, 1024)
BLOCKS = (6, 12, 24, 48)
_PATCH = 14


def measure(name: str, *, grid: int, layers: int, batch: int, device: torch.device) -> Row:
    """One point: a step of the bare encoder against one with the method."""
    config = ViTConfig(layers=layers, dim=384, heads=6, patch=_PATCH, grid=grid,
                       size=_PATCH * grid, mlp=1536)  # fmt: skip
    encoder = ViT(config)
    encoder.freeze()
    encoder.to(device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    method, settings = find(name)
    pipeline = build_pipeline(method, dict(settings), encoder, width=64, batch=batch)
    steps = [
        training_step(pipeline.fused, pipeline.trained()),
        training_step(pipeline.bare, pipeline.trained(bare=True)),
    ]
    times = interleaved(*steps, device=device, blocks=10)
    point = f"tokens={grid * grid} blocks={layers}"
    return Row(
        target=point, plain=times.bare.median, ours=times.method.median, unit="ms", note=name
    )


def main() -> None:
    """Print and write the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", nargs="+", default=["scalar_mix", "mema"])
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    rows = []
    for name in asked.methods:
        at = {"batch": asked.batch, "device": device}
        rows += [measure(name, grid=round(n**0.5), layers=12, **at) for n in TOKENS]
        rows += [measure(name, grid=8, layers=layers, **at) for layers in BLOCKS]
    finish("scaling", rows, device)


if __name__ == "__main__":
    main()
