"""One cell: build, train, score, and say what happened."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from fusionbench.api.fusion import Method
from fusionbench.api.tasks import SplitName
from fusionbench.encoders.products import by_onednn
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.stepping import needs_encoder, taps_of
from fusionbench.harness.train import Evaluation, TrainingLog, evaluate, train
from fusionbench.records.cell import CellRecord, CellSpec, Setting
from fusionbench.stats.metric import named_metrics

Scores = Float[np.ndarray, " example"]


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


def run_cell(
    spec: CellSpec, method: type[Method], materials: Materials, *, tuned: Tuned, eval_batch: int
) -> tuple[CellRecord, Scores]:
    """Train and score one cell; a tuning cell is scored on val, an evaluation cell on test."""
    started = time.perf_counter()
    model = build_model(method, {**spec.settings, **tuned.settings}, materials, spec.seed)
    with by_onednn(model, materials.encoder):
        log = train(model, materials, spec.seed, tuned.lr)
        record, scores = scored(spec, model, log, materials, tuned=tuned, eval_batch=eval_batch)
    return replace(record, seconds=round(time.perf_counter() - started, 3)), scores


def scored(  # noqa: PLR0913
    spec: CellSpec,
    model: Model,
    log: TrainingLog,
    materials: Materials,
    *,
    tuned: Tuned,
    eval_batch: int,
) -> tuple[CellRecord, Scores]:
    """Score a trained model and write down what it is; the record has no time yet."""
    found = evaluate(model, materials, split_of(spec), eval_batch)
    return described(spec, model, log, materials, tuned=tuned, found=found)


def split_of(spec: CellSpec) -> SplitName:
    """The examples that a cell is scored on."""
    return "val" if spec.stage == "tune" else "test"


def described(  # noqa: PLR0913
    spec: CellSpec,
    model: Model,
    log: TrainingLog,
    materials: Materials,
    *,
    tuned: Tuned,
    found: Evaluation,
) -> tuple[CellRecord, Scores]:
    """The record of a trained model whose scores are there, and these."""
    scores, trace = found
    items = materials.bundle.scored(split_of(spec))
    named, left_out = named_metrics(materials.task.metrics, scores, items, materials.task.metric)
    record = CellRecord(
        spec=spec,
        status="done",
        metric=materials.task.metric,
        chance=materials.task.chance,
        score=float(scores.mean()),
        scores=named,
        left_out=left_out,
        examples=len(scores),
        lr=tuned.lr,
        tuning=tuned.scores,
        lr_at_edge=tuned.at_edge,
        parameters=model.parameter_counts(),
        taps=taps_of(model.fusion),
        in_encoder=needs_encoder(model.fusion),
        notes=tuned.notes,
        loss=log.losses,
        trace=trace,
        unmoved=log.unmoved,
    )
    return record, scores
