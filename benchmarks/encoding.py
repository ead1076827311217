"""Images to files of hidden states, against the encoder alone, which keeps none of them.

    python benchmarks/encoding.py --device cuda

The same batches on the same device. Plain: the encoder's blocks, nothing written. Ours:
`features.encode` with every layer as a tap, in the type of the preset `paper`. The note has
the amount written; a slower disk or memory is the limit then, not the encoder.
"""

import numpy as np
import torch
from rows import Row, chosen_device, finish, parser_of
from sampled import empty_cache
from workload import seconds, small_encoder

from fusionbench.api.encoders import Encoder
from fusionbench.models.encoders import features
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.study.study import PAPER

_BATCH = 64
_TURNS = 3


def alone(encoder: Encoder, images: np.ndarray, device: torch.device) -> None:
    """Every block on every image, in bfloat16 autocast as `features.encode` does it."""
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(images[start : start + _BATCH]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            encoder.hidden_states(batch)


def written(encoder: Encoder, images: np.ndarray, device: torch.device, turn: int) -> None:
    """The same, kept: one file a layer."""
    key = FeatureKey(weights="benchmark", size=0, images=str(turn), count=len(images),
                     precision="bf16", dtype=PAPER.budget.feature_dtype)  # fmt: skip
    taps = [(layer,) for layer in range(encoder.shape.layers + 1)]
    features.encode(encoder, images, key, taps, limit_gib=100, device=device)


def main() -> None:
    """Print and write the row: the best of three turns each, in turn."""
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=4096)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    encoder = small_encoder(device)
    side = encoder.size
    images = np.random.default_rng(0).integers(0, 256, (asked.images, side, side, 3), np.uint8)
    alone(encoder, images[:_BATCH], device)
    found = []
    for turn in range(_TURNS):
        with empty_cache():
            plain = seconds(lambda: alone(encoder, images, device), device)
            ours = seconds(lambda turn=turn: written(encoder, images, device, turn), device)
        found.append((plain, ours))
    plain, ours = (len(images) / min(times) for times in zip(*found, strict=True))
    gib = len(images) * (encoder.shape.layers + 1) * encoder.shape.tokens * encoder.shape.dim
    note = f"{encoder.shape.layers + 1} layers, {2 * gib / 2**30:.2g} GiB written"
    row = Row(target="encoding", plain=plain, ours=ours, unit="images/s", note=note)
    finish("encoding", [row], device)


if __name__ == "__main__":
    main()
