"""Accuracy on val of the attentive reader: positions, optimiser and learning rates.

    python benchmarks/attentive.py --encoder nano --methods 'layer[index=4]' --steps 100 300

One row a setting: the mean over seeds for each task and method, and the seconds of one training on
one thread. The closed form on the same examples stands first. No test example is read.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sampled import _encoding, _training, jobs

from fusionbench.harness.cell import train_model
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.train import evaluate
from fusionbench.launchers.runner import Runner
from fusionbench.models.readers.attentive import AttentiveReader, positions
from fusionbench.records.cell import Budget, RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.plugins import load_method
from fusionbench.study.plan import Cell
from fusionbench.study.study import QUICK

TASKS = ("scenes_relation", "scenes_orientation", "scenes_count")
RATES = {"adamw": (3e-3,), "muon": (2e-2, 5e-2)}
EVAL_BATCH = 256


@dataclass(frozen=True)
class Way:
    """One setting of the attentive reader's training."""

    places: str
    optimiser: str
    lr: float
    vector_lr: float
    decay: float
    steps: int

    def __str__(self) -> str:
        rates = f"{self.lr:g}/{self.vector_lr:g}"
        return f"{self.places} {self.optimiser} {rates} decay {self.decay:g} {self.steps} steps"


def _without(reader: AttentiveReader) -> None:
    reader._placed = lambda seen: seen


def _keys_only(reader: AttentiveReader) -> None:
    plain = reader._placed
    reader._placed = lambda seen: seen
    reader.keys.register_forward_pre_hook(lambda _, given: (plain(given[0]),))


def _shorter(longest: float) -> Callable[[AttentiveReader], None]:
    def change(reader: AttentiveReader) -> None:
        reader._placed = lambda seen: (
            seen + positions(*seen.shape[-2:], reader.grid, longest=longest)
        )

    return change


PLACES: dict[str, Callable[[AttentiveReader], None]] = {
    "tokens": lambda reader: None,
    "keys": _keys_only,
    "none": _without,
    "tokens-100": _shorter(100.0),
}


def all_materials(
    encoder: str, methods: Sequence[str], tasks: Sequence[str], budget: Budget
) -> list[tuple[Cell, Materials]]:
    """Each method on each task with its hidden states; the encoder reads what is missing."""
    study = replace(
        QUICK, encoder=encoder, methods=tuple(methods), tasks=tuple(tasks), seeds=1, budget=budget
    )
    found = []
    by_task: dict[str, list[Cell]] = {}
    for cells in jobs(replace(study, references=False)):
        by_task.setdefault(cells[0].spec.task, []).append(cells[0])
    with tempfile.TemporaryDirectory() as folder:
        Store.create(folder)
        runner = Runner(RunOptions(out=folder, device="cpu"))
        for cells in by_task.values():
            runner.encode(_encoding(cells))
            found += [(cell, runner._materials_of(_training([cell]))) for cell in cells]
    return found


def accuracy(
    cell: Cell, materials: Materials, seed: int, lr: float, change: Callable[[Model], None]
) -> tuple[float, float]:
    """Accuracy on val in percent and seconds of a training."""
    method = load_method(cell.chosen.card)
    model = build_model(method, cell.spec.settings, materials, seed)
    change(model)
    started = time.process_time()
    train_model(model, materials, seed, lr, EVAL_BATCH)
    seconds = time.process_time() - started
    scores = evaluate(model, materials, "val", EVAL_BATCH).scores
    return 100 * float(scores.mean()), seconds


def show(
    name: str,
    work: Sequence[tuple[Cell, Materials]],
    budget: Budget,
    seeds: int,
    change: Callable[[Model], None],
) -> None:
    """Print the row of one setting: each task and method, the mean, seconds of one training."""
    cells, spent = [], []
    for cell, shared in work:
        own = replace(shared, budget=budget)
        runs = [accuracy(cell, own, seed, budget.lrs[0], change) for seed in range(seeds)]
        cells.append(float(np.mean([run[0] for run in runs])))
        spent += [run[1] for run in runs]
    row = " ".join(f"{value:6.1f}" for value in cells)
    print(f"{name:48s} {row}  {np.mean(cells):6.1f}  {np.mean(spent):6.2f} s", flush=True)


def ways(asked: argparse.Namespace) -> list[Way]:
    """All settings that the command line asks for."""
    return [
        Way(places, optimiser, lr, vector_lr, decay, steps)
        for steps in asked.steps
        for places in asked.places
        for optimiser in asked.optimisers
        for lr in asked.lrs or RATES[optimiser]
        for vector_lr in asked.vector_lrs
        for decay in asked.decays
    ]


def asked_for() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--encoder", default="nano")
    parser.add_argument("--image-size", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["layer[index=4]", "layer[index=7]"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, default=2048, help="Training pool of a task.")
    parser.add_argument("--draw", type=int, default=768, help="Training examples of a seed.")
    parser.add_argument("--val-items", type=int, default=512)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=["none", "tokens"])
    parser.add_argument("--optimisers", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--lrs", type=float, nargs="*", default=[])
    parser.add_argument("--vector-lrs", type=float, nargs="+", default=[5e-3])
    parser.add_argument("--decays", type=float, nargs="+", default=[0.01])
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    asked = asked_for()
    torch.set_num_threads(1)
    budget = replace(
        QUICK.budget, batch=asked.batch, train_items=asked.items, draw=asked.draw,
        val_items=asked.val_items, test_items=32, reader_width=asked.width,
        image_size=asked.image_size,
    )  # fmt: skip
    work = all_materials(asked.encoder, asked.methods, asked.tasks, budget)
    print(", ".join(f"{c.spec.task} {c.chosen.label}" for c, _ in work), flush=True)
    show("closed form", work, budget, asked.seeds, lambda model: None)
    for way in ways(asked):
        trained = replace(
            budget, reader="attentive", positions="grid", optimiser=way.optimiser,
            steps=way.steps, lrs=(way.lr,),
            vector_lr=way.vector_lr, weight_decay=way.decay,
        )  # fmt: skip
        change = PLACES[way.places]
        show(str(way), work, trained, asked.seeds, lambda model, do=change: do(model.reader))


if __name__ == "__main__":
    main()
