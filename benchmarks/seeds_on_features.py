"""Seeds of a post-encoder method on cached features: one pass against one seed, and the loop.

python benchmarks/seeds_on_features.py --device cuda
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from rows import Row, chosen_device, finish
from workload import find, materials

from fusionbench.costs.shapes import subject
from fusionbench.harness.batched import Run, train_together
from fusionbench.harness.model import build_model
from fusionbench.harness.train import train
from fusionbench.records import Budget
from fusionbench.study import PAPER, QUICK

CURVE = (1, 2, 3, 5, 8, 10, 16, 32)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call; processor time on a CPU, where others may be at work."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def compare(name: str, budget: Budget, seeds: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a loop over seeds and of one pass, the better of two turns each."""
    encoder_name = "shape:dinov2-s-14" if device.type == "cuda" else "nano"
    size = 112 if device.type == "cuda" else 0
    encoder, _ = subject(encoder_name, image_size=size, device=device, dtype=torch.float32)
    method, settings = find(name)
    shared = materials(encoder, method, settings, budget, device=device)
    runs = [Run(seed=seed, lr=budget.lrs[0]) for seed in range(seeds)]

    def models() -> list:
        return [build_model(method, settings, shared, run.seed) for run in runs]

    def loop() -> None:
        for model, run in zip(models(), runs, strict=True):
            train(model, shared, run.seed, run.lr)

    turns = [
        (seconds(loop, device), seconds(lambda: train_together(models(), shared, runs), device))
        for _ in range(3)
    ][1:]
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--methods", nargs="+", default=["scalar_mix", "dense_connector-dci", "mmfuser"]
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--points", nargs="+", type=int, default=CURVE, help="Of the curve.")
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    torch.set_num_threads(1)
    base = PAPER.budget if device.type == "cuda" else QUICK.budget
    budget = replace(base, steps=asked.steps, lrs=(3e-3,))
    rows = []
    for name in asked.methods:
        one, _ = compare(name, budget, 1, device)
        loop, together = compare(name, budget, asked.seeds, device)
        if asked.seeds == 10:
            rows.append(Row(target="ten-seeds", plain=one, ours=together, unit="s",
                            note=f"{name}, one seed against ten"))  # fmt: skip
        else:
            rows.append(Row(target="seed-loop-cpu", plain=loop, ours=together, unit="s",
                            note=f"{name}, {asked.seeds} seeds"))  # fmt: skip
    for seeds in asked.points if asked.curve else ():
        loop, together = compare(asked.methods[0], budget, seeds, device)
        rows.append(Row(target=f"seeds={seeds}", plain=loop, ours=together, unit="s",
                        note=asked.methods[0]))  # fmt: skip
    finish(f"seeds_on_features-{asked.seeds}", rows, device)


if __name__ == "__main__":
    main()
