"""One training: choose its learning rate, train it, score it on each task, make the records.

A training with the ridge reader is: choose kernel and strength at the initial fusion, train the
fusion on the leave-one-out error of minibatches, choose again and solve on all training examples of
the seed. A model without parameters is solved once.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.api.tasks import Scoring
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.materials import Batch, Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.stepping import needs_encoder, taps_of
from fusionbench.harness.train import (
    Evaluation,
    Scores,
    TrainingLog,
    autocast,
    drawn,
    evaluate,
    train,
)
from fusionbench.models.readers.ridge import CHOICE, Choice, RidgeReader
from fusionbench.records.cell import CellRecord, CellSpec, Setting
from fusionbench.stats.cells import named_metrics

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


Outcome = tuple[CellRecord, Scores] | FloatingPointError
"""A record with the score of each example, or the error of a training that diverged."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The learning rate of a cell and how it was found."""

    lr: float
    scores: Mapping[str, list[float]]
    """Learning rate -> val scores of the tuning seeds; empty if there was nothing to choose."""
    at_edge: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """What was chosen along with it."""
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean val score of the learning rate that was chosen."""
        return float(np.mean(self.scores[f"{self.lr:g}"]))


def choose_lr(scores: Mapping[float, list[float]]) -> Tuned:
    """The learning rate with the best mean val score; ties go to the smaller one."""
    means = {lr: float(np.mean(values)) for lr, values in sorted(scores.items())}
    best = max(means, key=lambda lr: means[lr])
    return Tuned(
        lr=best,
        scores={f"{lr:g}": list(values) for lr, values in sorted(scores.items())},
        at_edge=len(means) > 1 and best in (min(means), max(means)),
    )


def choose_layer(setting: str, found: Mapping[int, Tuned]) -> Tuned:
    """The layer with the best mean val score at its own learning rate; ties go to the first."""
    best = max(sorted(found), key=lambda layer: found[layer].mean)
    scores = {
        f"{setting}={layer}, {lr}": values
        for layer, tuned in sorted(found.items())
        for lr, values in tuned.scores.items()
    }
    runs = sum(map(len, scores.values()))
    note = f"{setting}={best}: the best on val of {len(found)} layers tried in {runs} runs"
    return replace(found[best], scores=scores, settings={setting: best}, notes=(note,))


@dataclass(frozen=True, kw_only=True)
class PassCell:
    """A training of a pass as one task scores it, with the learning rate it is trained at."""

    spec: CellSpec
    tuned: Tuned
    wanted: bool = True
    """False for a cell that has a record already, or that only completes the pass."""


def run_alone(
    method: type[Method],
    materials: Materials,
    member: PassCell,
    *,
    eval_batch: int,
    note: str = "",
) -> Outcome | None:
    """Train one model and score it; None for a member that is not wanted.

    A tuning cell is scored on val, an evaluation cell on test. A loss that stops being finite is
    given back as its FloatingPointError.
    """
    if not member.wanted:
        return None
    spec, tuned = member.spec, member.tuned
    started = time.perf_counter()
    model = build_model(method, {**spec.settings, **tuned.settings}, materials, spec.seed)
    try:
        log, fit = train_model(model, materials, spec.seed, tuned.lr, eval_batch)
        found = evaluate(model, materials, spec.split, eval_batch)
    except FloatingPointError as error:
        return error
    return outcome(
        member, model, log, materials, found,
        fit=fit, seconds=time.perf_counter() - started, notes=(note,) if note else (),
    )  # fmt: skip


def outcome(  # noqa: PLR0913
    member: PassCell,
    model: Model,
    log: TrainingLog,
    materials: Materials,
    found: Evaluation,
    *,
    fit: Fit,
    seconds: float,
    notes: tuple[str, ...],
) -> Outcome:
    """The record and the scores of a training."""
    record = CellRecord(
        spec=member.spec,
        status="done",
        **scored(member.spec, materials.task, materials.bundle, found.scores),
        distinct=found.answers,
        tokens=found.tokens,
        lr=member.tuned.lr,
        tuning=member.tuned.scores,
        lr_at_edge=member.tuned.at_edge,
        parameters=model.parameter_counts(),
        taps=taps_of(model.fusion),
        in_encoder=needs_encoder(model.fusion),
        notes=(*member.tuned.notes, *model.fusion.notes, *notes),
        loss=log.losses,
        trace=found.trace,
        unmoved=log.unmoved,
        fit=fit,
        seconds=round(seconds, 3),
    )
    return record, found.scores


def scored(spec: CellSpec, task: Scoring, bundle: Bundle, scores: Scores) -> dict[str, Any]:
    """The fields of a record that its outcomes and its task decide."""
    items = bundle.scored(spec.split)
    named, left_out = named_metrics(task.metrics, scores, items, task.metric)
    return {
        "metric": task.metric,
        "chance": task.chance,
        "score": float(scores.mean()),
        "scores": named,
        "left_out": left_out,
        "examples": len(scores),
    }
