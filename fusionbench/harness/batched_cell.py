"""Cells of one method on one task that differ in seed and learning rate, trained in one pass."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fusionbench.api.fusion import Method
from fusionbench.harness.alike import NotAlike
from fusionbench.harness.batched import Run, train_together
from fusionbench.harness.batched_evaluate import evaluate_all
from fusionbench.harness.cell import Scores, Tuned, described, run_cell, split_of
from fusionbench.harness.evaluate import Evaluation
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.train import TrainingLog
from fusionbench.records.cell import CellRecord, CellSpec


@dataclass(frozen=True, kw_only=True)
class Member:
    """One cell of a pass, and the learning rate it is trained with."""

    spec: CellSpec
    tuned: Tuned
    wanted: bool = True
    """False for a run that only completes the pass: nobody asked for its scores."""


Outcome = tuple[CellRecord, Scores] | FloatingPointError


def run_pass(
    method: type[Method], materials: Materials, members: Sequence[Member], *, eval_batch: int
) -> list[Outcome | None]:
    """The outcome of each wanted member, in order; the error of a run that diverged.

    Models that cannot run together run one by one, and their records say why.
    """
    started = time.perf_counter()
    models = [
        build_model(
            method, {**each.spec.settings, **each.tuned.settings}, materials, each.spec.seed
        )
        for each in members
    ]
    runs = [Run(seed=each.spec.seed, lr=each.tuned.lr) for each in members]
    note = ""
    try:
        logs = train_together(models, materials, runs)
    except (NotAlike, torch.OutOfMemoryError) as reason:
        note = f"trained alone, not in a pass of {len(members)}: {reason}"
    # Behind the handler: while it runs, the error keeps the memory of what it stopped.
    if note:
        return [_alone(method, materials, each, note, eval_batch) for each in members]
    # All of them, wanted or not: what is missing changes no layout, and so no rounding.
    found, note = evaluate_all(models, materials, split_of(members[0].spec), eval_batch)
    notes = (note,) if note else ()
    outcomes = [
        _outcome(each, model, log, materials, one)
        for each, model, log, one in zip(members, models, logs, found, strict=True)
    ]
    seconds = round((time.perf_counter() - started) / len(members), 3)
    return [
        (replace(one[0], seconds=seconds, notes=(*one[0].notes, *notes)), one[1])
        if isinstance(one, tuple)
        else one
        for one in outcomes
    ]


def _outcome(
    member: Member,
    model: Model,
    log: TrainingLog | FloatingPointError,
    materials: Materials,
    found: Evaluation,
) -> Outcome | None:
    if not member.wanted:
        return None
    if isinstance(log, FloatingPointError):
        return log
    return described(member.spec, model, log, materials, tuned=member.tuned, found=found)


def _alone(
    method: type[Method], materials: Materials, member: Member, note: str, eval_batch: int
) -> Outcome | None:
    if not member.wanted:
        return None
    try:
        record, scores = run_cell(
            member.spec, method, materials, tuned=member.tuned, eval_batch=eval_batch
        )
    except FloatingPointError as error:
        return error
    return replace(record, notes=(*record.notes, note)), scores
