"""Hidden states mapped from disk, read in each step or ahead by a thread, against resident ones.

    python benchmarks/feature_loading.py --device cuda

A training pass of one method on files of hidden states. Plain: each step gathers its rows and
waits. Ours: the prefetch of `harness/materials.py`. The note has the time with all hidden states on
the device; the difference to it is the cost of loading.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rows import Row, chosen_device, finish, parser_of
from workload import find, materials, seconds, small_budget, small_encoder

from fusionbench.harness import passes as batched
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, train_together

Once = Callable[[Materials], None]


def on_disk(shared: Materials, folder: Path) -> Materials:
    """The same hidden states in float16 files; the pages are in memory, as after a first epoch."""
    for number, (tap, values) in enumerate(list(shared._taps.items())):
        path = folder / f"{number}.npy"
        np.save(path, values.cpu().numpy().astype(np.float16))
        shared._taps[tap] = torch.from_numpy(np.load(path, mmap_mode="c"))
    return shared


def direct(shared: Materials, taps, rows):
    """The plain way: read in the step, copied in the step."""
    for picked in rows:
        yield shared.states(picked)(tuple(taps))


def measure(make: Callable[[], Materials], once: Once, device: torch.device) -> list[float]:
    """Seconds with everything resident, read in the step, and read ahead."""

    def best(shared: Materials) -> float:
        once(shared)
        return min(seconds(lambda: once(shared), device) for _ in range(3))

    resident = best(make())
    if device.type == "cpu":
        # A CPU has no other place: what is mapped counts as resident, and no thread would start.
        Materials.resident = lambda self, taps: False
    with tempfile.TemporaryDirectory() as folder:
        mapped, usual = on_disk(make(), Path(folder)), batched.prefetch
        ahead = best(mapped)
        batched.prefetch = direct
        plain = best(mapped)
        batched.prefetch = usual
    return [resident, plain, ahead]


def main() -> None:
    """Print and write the row."""
    parser = parser_of(__doc__)
    parser.add_argument("--method", default="dense_connector-dci")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pool", type=int, default=4096)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    budget = small_budget(device, asked.steps, 1e-3)
    encoder = small_encoder(device)
    method, settings = find(asked.method)
    runs = [PassMember(seed=seed, lr=1e-3) for seed in range(asked.seeds)]
    make = partial(materials, encoder, method, settings, budget, device=device, pool=asked.pool)

    def once(shared: Materials) -> None:
        train_together([build_model(method, settings, shared, r.seed) for r in runs], shared, runs)

    resident, plain, ahead = measure(make, once, device)
    note = f"{asked.method}, {asked.seeds} seeds; resident on the device: {resident:.3g} s"
    row = Row(target="feature-loading", plain=plain, ours=ahead, unit="s", note=note)
    finish("feature_loading", [row], device)


if __name__ == "__main__":
    main()
