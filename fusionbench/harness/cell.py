"""One training: choose its learning rate, train it, score it on each task, make the records."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fusionbench.api.fusion import Method
from fusionbench.api.tasks import Scoring
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.ridge import Fit, train_model
from fusionbench.harness.stepping import needs_encoder, taps_of
from fusionbench.harness.train import Evaluation, Scores, TrainingLog, evaluate
from fusionbench.records.cell import CellRecord, CellSpec, Setting
from fusionbench.stats.cells import named_metrics

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
