"""Mema at CLIP ViT-L/14-336: a training step and inference, as published and as we run it.

    python benchmarks/mema_clip.py --device cuda

The plain way is transformers' tower with eager attention, which keeps every attention map for the
way back, stepped block by block. Ours is one product for query, key and value, fused attention and
one compiled graph. Random weights; bfloat16 throughout; a narrow projector, so that the step is
the encoder's and the adapter's. `--shrink` makes both small enough for a CPU: to see that the
script runs, not to be reported.
"""

import argparse

import torch
from rows import Row, chosen_device, finish
from workload import find

from fusionbench.costs.pipeline import build_pipeline, training_step
from fusionbench.costs.timing import interleaved, peak_bytes
from fusionbench.encoders.contract import Encoder
from fusionbench.encoders.hf import HfEncoder
from fusionbench.encoders.vit import ViT, ViTConfig

_HALF = (0.5, 0.5, 0.5)
_WIDTH = 64


def published(config: ViTConfig, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The CLIP tower of transformers with eager attention and random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    wanted = CLIPVisionConfig(
        hidden_size=config.dim,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.size,
        patch_size=config.patch,
        attn_implementation="eager",
    )
    model = CLIPVisionModel(wanted)
    tower = getattr(model, "vision_model", model)
    encoder = HfEncoder(tower, family="clip", size=config.size, mean=_HALF, std=_HALF)
    encoder.freeze()
    return encoder.to(device=device, dtype=dtype)


def clean(config: ViTConfig, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Our own blocks in the same shape."""
    encoder = ViT(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
    encoder.freeze()
    return encoder.to(device=device, dtype=dtype)


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--shrink", action="store_true")
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    config = ViTConfig(layers=24, dim=1024, heads=16, patch=14, grid=24, size=336, mlp=4096)
    if asked.shrink:
        config = ViTConfig(layers=4, dim=64, heads=4, patch=14, grid=4, size=56, mlp=256)
    method, settings = find("mema")
    plain, ours = (
        build_pipeline(
            method, dict(settings), make(config, device, torch.bfloat16), width=_WIDTH,
            batch=asked.batch,
        )
        for make in (published, clean)
    )  # fmt: skip
    rows = train_rows(plain, ours, device, asked.blocks) + inference_rows(
        ours, device, asked.blocks
    )
    finish("mema_clip-shrunk" if asked.shrink else "mema_clip", rows, device)


def train_rows(plain, ours, device, blocks) -> list[Row]:
    """Images per second and peak memory of a training step of the adapters."""
    steps = [
        training_step(torch.compile(ours.fused), ours.trained()),
        training_step(plain.fused, plain.trained()),
    ]
    times = interleaved(*steps, device=device, blocks=blocks)
    images = 1000 * len(ours.images)
    rows = [
        Row(target="mema-train-clip", plain=images / times.bare.median,
            ours=images / times.method.median, unit="images/s"),
    ]  # fmt: skip
    memory = [peak_bytes(step, device) for step in steps]
    if memory[0] is not None and memory[1] is not None:
        gib = [value / 2**30 for value in memory]
        rows.append(Row(target="mema-memory-clip", plain=gib[1], ours=gib[0], unit="GiB"))
    return rows


def inference_rows(ours, device, blocks) -> list[Row]:
    """A batch with Mema over the bare encoder, both compiled."""
    with torch.no_grad():
        times = interleaved(
            torch.compile(ours.fused), torch.compile(ours.bare), device=device, blocks=blocks
        )
    return [Row(target="mema-inference-clip", plain=times.bare.median, ours=times.method.median,
                unit="ms")]  # fmt: skip


if __name__ == "__main__":
    main()
