"""The closed-form steps of a cell with the ridge reader: collect features, choose, solve.

A training with this reader is: choose kernel and strength at the initial fusion, train the fusion
on the leave-one-out error of minibatches, choose again and solve on all training examples of the
seed. A model without parameters is solved once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model
from fusionbench.harness.train import TrainingLog, autocast, drawn, train
from fusionbench.readers.ridge import CHOICE, Choice
from fusionbench.readers.ridge_reader import RidgeReader

Fit = Mapping[str, str | float]
"""Kernel, strength and leave-one-out error, as a record holds them."""


def train_model(
    model: Model, materials: Materials, seed: int, lr: float, size: int
) -> tuple[TrainingLog, Fit]:
    """Train in place, with the closed-form steps where the reader has them.

    `size`: most examples at a time outside of training. Raises FloatingPointError if the loss or
    the features stop being finite.
    """
    if not isinstance(model.reader, RidgeReader):
        return train(model, materials, seed, lr), {}
    found: Fit = {}
    if model.trainable:
        first = _fit_alone(model, materials, seed, size, most=CHOICE)
        model.reader.use(first)
        found = before(first)
    log = train(model, materials, seed, lr)
    return log, {**found, **plain(_fit_alone(model, materials, seed, size))}


def own_examples(materials: Materials, seeds: Sequence[int], most: int = 0) -> Batch:
    """The training examples that each seed draws, the first `most` of them: [seed, example]."""
    pool = materials.splits["train"]
    rows = [drawn(materials.name, seed, len(pool), materials.budget) for seed in seeds]
    kept = np.stack(rows)[:, : most or len(rows[0])]
    return pool.pick(torch.from_numpy(kept).to(materials.device))


def fit(
    model: Model, materials: Materials, batch: Batch, features: Float[Tensor, "example width"]
) -> Choice:
    """Solve the model's head on these examples; FloatingPointError for features not finite."""
    if not bool(torch.isfinite(features).all()):
        raise FloatingPointError("the features of the trained fusion are not finite")
    return reader_of(model).fit(
        features, materials.question_kernel, batch.questions, batch.answers, batch.rows,
        len(materials.bundle.answers),
    )  # fmt: skip


def reader_of(model: Model) -> RidgeReader:
    """The model's ridge reader. Raises TypeError for another reader."""
    if not isinstance(model.reader, RidgeReader):
        raise TypeError(f"{type(model.reader).__name__} has no closed form")
    return model.reader


def plain(choice: Choice) -> Fit:
    """The choice as a record holds it."""
    return {
        "kernel": choice.kernel.name,
        "strength": float(f"{choice.strength:.6g}"),
        "error": round(choice.error, 6),
    }


def before(choice: Choice) -> Fit:
    """The choice at the initial fusion."""
    return {f"{name}_before": value for name, value in plain(choice).items()}


@torch.no_grad()
def _fit_alone(model: Model, materials: Materials, seed: int, size: int, most: int = 0) -> Choice:
    model.eval()
    drawn_once = own_examples(materials, [seed], most)
    batch = Batch(
        rows=drawn_once.rows[0], questions=drawn_once.questions[0], answers=drawn_once.answers[0]
    )
    parts = []
    for rows in torch.split(torch.arange(len(batch), device=materials.device), size):
        with autocast(materials):
            parts.append(model(batch.pick(rows), materials)[0].float())
    return fit(model, materials, batch, torch.cat(parts))
