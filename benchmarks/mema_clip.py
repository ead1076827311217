"""Mema at CLIP ViT-L/14-336: a training step and inference, as published and as we run it.

    python benchmarks/mema_clip.py --device cuda

The plain way is transformers' tower with eager attention, which keeps every attention map for the
way back, stepped block by block. Ours is one product for query, key and value, fused attention and
one compiled graph: as it comes, captured in CUDA graphs, and with less kept for the way back
(`gates`: the feedback is computed again; `half`: `activation_memory_budget` of the partitioner).
Random weights; bfloat16 throughout; a narrow projector, so that the step is the encoder's and the
adapter's. The row of a target is the fastest way within 10 GiB, or the fastest where none is.
`--shrink` makes both small enough for a CPU: to see that the script runs, not to be reported.
"""

from contextlib import nullcontext
from functools import partial

import torch
import torch._functorch.config as partitioner
from rows import Row, chosen_device, finish, parser_of
from torch.utils.checkpoint import checkpoint
from workload import find

from fusionbench.api.encoders import Encoder
from fusionbench.harness.measure import interleaved, peak_bytes
from fusionbench.harness.pipeline import build_pipeline, compiled, training_step
from fusionbench.models.encoders.preprocessing import Preprocessing
from fusionbench.models.encoders.towers import HfEncoder
from fusionbench.models.encoders.vit import ViT, ViTConfig

_PIXELS = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_WIDTH = 64
_GIB = 10
# Mode of torch.compile, and the share of activations that may be kept.
WAYS = {
    "default": ("default", 1.0),
    "gates": ("default", 1.0),
    "graphs": ("reduce-overhead", 1.0),
    "half": ("default", 0.5),
}


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
    encoder = HfEncoder(tower, family="clip", size=config.size, images=_PIXELS)
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
    parser = parser_of(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--parts", nargs="+", default=["train", "inference"])
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
    rows = []
    if "train" in asked.parts:
        rows += train_rows(plain, ours, device, asked.blocks, asked.ways)
    if "inference" in asked.parts:
        rows += inference_rows(ours, device, asked.blocks)
    one_way = asked.ways if len(asked.ways) == 1 else []
    name = "-".join(["mema_clip", *(asked.parts if len(asked.parts) == 1 else []), *one_way])
    finish(f"{name}-shrunk" if asked.shrink else name, rows, device)


def train_rows(plain, ours, device, blocks, ways) -> list[Row]:
    """Images per second and peak memory of a training step of the adapters, way by way."""
    published_step = training_step(plain.fused, plain.trained())
    found = {}
    for way in ways:
        torch.compiler.reset()
        mode, share = WAYS[way]
        if way == "gates":
            again(ours.fusion.spatial_gate)
        fewer = partitioner.patch(activation_memory_budget=share) if share < 1 else nullcontext()
        with fewer:
            steps = [training_step(compiled(ours.fused, mode=mode), ours.trained()), published_step]
            times = interleaved(*steps, device=device, blocks=blocks)
            # Graphs have taken their memory before the step that is looked at.
            seen = None if mode == "reduce-overhead" else device
            found[way] = times, [peak_bytes(step, seen) if seen else None for step in steps]
        ours.fusion.spatial_gate.__dict__.pop("forward", None)
    images = 1000 * len(ours.images)
    rows = []
    for way, (times, memory) in found.items():
        speeds = {"plain": images / times.bare.median, "ours": images / times.method.median}
        rows.append(Row(target=f"way={way}", unit="images/s", note="training", **speeds))
        if None not in memory:
            gib = {"plain": memory[1] / 2**30, "ours": memory[0] / 2**30}
            rows.append(Row(target=f"way={way}", unit="GiB", note="training", **gib))
    return rows + chosen(rows)


def again(gate: torch.nn.Module) -> None:
    """What it computes on the way there is not kept, but computed again on the way back."""
    gate.forward = partial(checkpoint, gate.forward, use_reentrant=False, preserve_rng_state=False)


def chosen(rows: list[Row]) -> list[Row]:
    """The rows of the two targets: one way for both."""
    speed = {row.target: row for row in rows if row.unit == "images/s"}
    memory = {row.target: row for row in rows if row.unit == "GiB"}
    small = [way for way in speed if way in memory and memory[way].ours <= _GIB]
    best = max(small or speed, key=lambda way: speed[way].ours)
    one = speed[best]
    targets = [Row(target="mema-train-clip", plain=one.plain, ours=one.ours, unit=one.unit,
                   note=best)]  # fmt: skip
    if best in memory:
        one = memory[best]
        targets.append(Row(target="mema-memory-clip", plain=one.plain, ours=one.ours,
                           unit=one.unit, note=best))  # fmt: skip
    return targets


def inference_rows(ours, device, blocks) -> list[Row]:
    """A batch with Mema over the bare encoder, both compiled."""
    torch.compiler.reset()
    with torch.no_grad():
        times = interleaved(compiled(ours.fused), compiled(ours.bare), device=device, blocks=blocks)
    return [Row(target="mema-inference-clip", plain=times.bare.median, ours=times.method.median,
                unit="ms")]  # fmt: skip


if __name__ == "__main__":
    main()
