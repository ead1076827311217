"""Seeds of Mema, reader included: the frozen encoder shared by all seeds of a pass.

python benchmarks/seeds_in_encoder.py --device cuda
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
from rows import Row, chosen_device, finish
from seeds_on_features import seconds
from workload import find, materials

from fusionbench.costs.shapes import subject
from fusionbench.harness.batched import Run, train_together
from fusionbench.harness.frozen import compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.train import train
from fusionbench.records import Budget
from fusionbench.study import PAPER


def speeds(method: str, counts: list[int], budget: Budget, device: torch.device, *, fast: bool):
    """Samples per second for each number of seeds; `fast`: in one pass, with compiled blocks."""
    cls, settings = find(method)
    encoder, _ = subject("shape:dinov2-s-14", image_size=112, device=device, dtype=torch.float32)
    if fast and device.type == "cuda":
        compile_blocks(encoder)
    shared = materials(encoder, cls, settings, budget, device=device)

    def turn(runs: list[Run]) -> None:
        models = [build_model(cls, settings, shared, run.seed) for run in runs]
        if fast:
            train_together(models, shared, runs)
            return
        for model, run in zip(models, runs, strict=True):
            train(model, shared, run.seed, run.lr)

    for count in counts:
        runs = [Run(seed=seed, lr=1e-3) for seed in range(count)]
        turn(runs)
        samples = count * budget.steps * budget.batch
        yield samples / min(seconds(partial(turn, runs), device) for _ in range(2))


def main() -> None:
    """An eager loop over seeds, and one pass, in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--method", default="mema")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 5, 10, 16, 32])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    budget = replace(PAPER.budget, steps=asked.steps, batch=asked.batch, lrs=(1e-3,))
    ways = [
        list(speeds(asked.method, asked.seeds, budget, device, fast=fast)) for fast in (False, True)
    ]
    rows = [
        Row(target=f"seeds={count}", plain=loop, ours=together, unit="samples/s", note=asked.method)
        for count, loop, together in zip(asked.seeds, *ways, strict=True)
    ]
    best = max(rows, key=lambda row: row.ours)
    rows.append(replace(best, target="mema-seeds", note=f"{asked.method}, {best.target}"))
    finish("seeds_in_encoder", rows, device)


if __name__ == "__main__":
    main()
