"""Training of one cell of the quick study on one CPU thread: linear layers by oneDNN and by MKL.

python benchmarks/linear_layers.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from rows import Row, finish
from workload import find, materials

from fusionbench.cost.shapes import subject
from fusionbench.encoders.products import by_onednn
from fusionbench.harness.model import build_model
from fusionbench.harness.train import train
from fusionbench.study.study import QUICK

CPU = torch.device("cpu")
SEED = 0


def compare(name: str, steps: int, turns: int) -> tuple[float, float]:
    """Median processor seconds by MKL and by oneDNN, in turn."""
    encoder, _ = subject("nano", image_size=0, device=CPU, dtype=torch.float32)
    method, settings = find(name)
    budget = replace(QUICK.budget, steps=steps)
    shared = materials(encoder, method, settings, budget, device=CPU)

    def plain() -> None:
        train(build_model(method, settings, shared, SEED), shared, SEED, budget.lrs[0])

    def fast() -> None:
        model = build_model(method, settings, shared, SEED)
        with by_onednn(model, encoder):
            train(model, shared, SEED, budget.lrs[0])

    found = [(_seconds(plain), _seconds(fast)) for _ in range(turns + 1)][1:]
    mkl, onednn = zip(*found, strict=True)
    return statistics.median(mkl), statistics.median(onednn)


def _seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=QUICK.budget.steps)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument(
        "--methods", nargs="+", default=["mema", "dla", "wide_projector", "dense_connector-dci"]
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in asked.methods:
        mkl, onednn = compare(name, asked.steps, asked.turns)
        rows.append(Row(target="linear-layers-cpu", plain=mkl, ours=onednn, unit="s", note=name))
    finish("linear_layers", rows, CPU)


if __name__ == "__main__":
    main()
