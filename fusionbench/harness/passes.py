"""Cells of one method on one task that differ in seed and learning rate, trained in one pass."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.api.tasks import SplitName
from fusionbench.harness.cell import (
    Fit,
    Outcome,
    PassCell,
    before,
    fit,
    outcome,
    own_examples,
    plain,
    reader_of,
    run_alone,
)
from fusionbench.harness.guard import reseed
from fusionbench.harness.materials import Batch, Materials, prefetch
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.stack import NotEquivalent, Output, Stack, check_equivalence
from fusionbench.harness.train import (
    Evaluation,
    Optimisers,
    TrainingLog,
    autocast,
    batches,
    evaluate,
    mean_trace,
    outcomes_of,
    require_finite,
    require_trace,
    schedule,
    spaced,
)
from fusionbench.models.readers.ridge import CHOICE, Choice, RidgeReader
from fusionbench.records.cell import canonical

# Training of several runs in one pass: each with its own examples, clipping and optimiser.
#
# The streams are those of a run alone, so a run's numbers differ from the loop's by rounding only
# (a test: losses within 1e-5 in float32, at least 99.9 % of the predictions alike).


@dataclass(frozen=True, kw_only=True)
class PassMember:
    """The seed and learning rate of one training of a pass."""

    seed: int
    lr: float


def train_all(
    models: Sequence[Model],
    materials: Materials,
    runs: Sequence[PassMember],
    size: int,
    known: str = "",
) -> tuple[list[TrainingLog | FloatingPointError], list[Fit]]:
    """Train in place, with the closed-form steps where the reader has them.

    `size`: most examples at a time outside of training, over all runs; `known` as for
    `check_equivalence`. Raises NotEquivalent as `train_together` and `fit_together` do.
    """
    if not isinstance(models[0].reader, RidgeReader):
        return train_together(models, materials, runs, known), [{} for _ in runs]
    seeds = [run.seed for run in runs]
    fits: list[Fit] = [{} for _ in runs]
    logs: list[TrainingLog | FloatingPointError]
    logs = [TrainingLog(losses=(), unmoved=()) for _ in runs]
    if models[0].trainable:
        chosen = fit_together(models, materials, seeds, size, most=CHOICE)
        for run, (model, choice) in enumerate(zip(models, chosen, strict=True)):
            if isinstance(choice, FloatingPointError):
                raise NotEquivalent(f"{choice}, before any training")
            reader_of(model).use(choice)
            fits[run] = before(choice)
        logs = train_together(models, materials, runs, known)
    for run, choice in enumerate(fit_together(models, materials, seeds, size)):
        if isinstance(choice, FloatingPointError):
            logs[run] = choice
        else:
            fits[run] = {**fits[run], **plain(choice)}
    return logs, fits


@torch.no_grad()
def fit_together(
    models: Sequence[Model], materials: Materials, seeds: Sequence[int], size: int, most: int = 0
) -> list[Choice | FloatingPointError]:
    """Each model's ridge head on the examples of its own seed, from features of one pass.

    Raises NotEquivalent for models whose features differ from those of each alone.
    """
    batch = own_examples(materials, seeds, most)
    for model in models:
        model.eval()
    stack = Stack(models, materials)
    parts = []
    for columns in torch.split(
        torch.arange(batch.rows.shape[1], device=materials.device), max(1, size // len(models))
    ):
        part = Batch(
            rows=batch.rows[:, columns],
            questions=batch.questions[:, columns],
            answers=batch.answers[:, columns],
        )
        try:
            with autocast(materials):
                hidden = materials.states(part.rows.flatten())(stack.taps)
                parts.append(stack.own_outputs(part, hidden).float())
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise NotEquivalent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    features = torch.cat(parts, dim=1)
    found: list[Choice | FloatingPointError] = []
    for run, model in enumerate(models):
        own = Batch(
            rows=batch.rows[run], questions=batch.questions[run], answers=batch.answers[run]
        )
        _same_features(model, materials, own, features[run])
        try:
            found.append(fit(model, materials, own, features[run]))
        except FloatingPointError as error:
            found.append(error)
    return found


def _same_features(
    model: Model, materials: Materials, batch: Batch, together: Float[Tensor, "example output"]
) -> None:
    few = batch.pick(torch.arange(min(_PROBE, len(batch)), device=materials.device))
    with autocast(materials):
        alone, _ = model(few, materials)
    apart = (together[: len(few)] - alone).float().norm()
    if apart > _TOLERANCE[materials.budget.precision] * alone.float().norm():
        raise NotEquivalent("the features of a run differ in the pass and alone")


def train_together(
    models: Sequence[Model], materials: Materials, runs: Sequence[PassMember], known: str = ""
) -> list[TrainingLog | FloatingPointError]:
    """Train in place; a run that diverges is given back as its error and disturbs no other.

    Raises NotEquivalent, before anything is trained, for models that cannot run together.
    """
    rows = _rows(materials, runs)
    for model in models:
        model.train()
    check_equivalence(models, materials, rows[0], known)
    stack = Stack(models, materials, fast=bool(materials.compiled))
    optimisers = _Optimisers(stack, materials, runs)
    losses = []
    steps = [materials.splits["train"].pick(picked) for picked in rows]
    states = prefetch(materials, stack.taps, [batch.rows.flatten() for batch in steps])
    for at, (batch, hidden) in enumerate(zip(steps, states, strict=True)):
        optimisers.forget()
        with autocast(materials):
            each = stack.losses(batch, hidden)
        torch.autograd.backward(each.sum())
        optimisers.step(schedule(at, materials.budget))
        losses.append(each.detach())
    stack.write_back(models)
    history = torch.stack(losses)
    return [
        _log(models[run], history[:, run], each.lr, optimisers.unmoved(run))
        for run, each in enumerate(runs)
    ]


def clip_each(gradients: Sequence[Float[Tensor, "run ..."]], limit: float) -> None:
    """Scale each run's gradients to a norm of at most `limit`, as `clip_grad_norm_` does."""
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])
    share = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(share.reshape(-1, *[1] * (gradient.ndim - 1)))


class _Optimisers:
    """The optimisers of each learning rate, on views of the stacked weights."""

    def __init__(self, stack: Stack, materials: Materials, runs: Sequence[PassMember]) -> None:
        self.parameters = stack.parameters
        self.clip = materials.budget.clip
        self.names = [name for name, p in stack.parameters.items() if p.requires_grad]
        self.fusion = [name for name in self.names if name.startswith("fusion.")]
        self.parts: list[tuple[slice, dict[str, Tensor], Optimisers]] = []
        first = 0
        for lr, same in groupby(runs, key=lambda run: run.lr):
            part = slice(first, first := first + len(list(same)))
            views = {name: stack.parameters[name].detach()[part] for name in self.names}
            optimiser = Optimisers(list(views.values()), materials.budget, lr, axes=1)
            self.parts.append((part, views, optimiser))

    def forget(self) -> None:
        """Drop the gradients of the last step."""
        for name in self.names:
            self.parameters[name].grad = None

    def step(self, share: float) -> None:
        """Clip and move; `share` of the peak learning rate."""
        clip_each([g for n in self.names if (g := self.parameters[n].grad) is not None], self.clip)
        for part, views, optimiser in self.parts:
            for name, view in views.items():
                gradient = self.parameters[name].grad
                view.grad = None if gradient is None else gradient[part]
            optimiser.step(share)

    def unmoved(self, run: int) -> tuple[str, ...]:
        """Parameters of the run's fusion that no gradient ever reached."""
        part, views, optimiser = next(p for p in self.parts if run < p[0].stop)
        moments = {name: optimiser.moment(views[name]) for name in self.fusion}
        return tuple(
            name.removeprefix("fusion.")
            for name, moment in moments.items()
            if moment is None or not bool(moment[run - part.start].any())
        )


def _rows(materials: Materials, runs: Sequence[PassMember]) -> list[Int[Tensor, "run batch"]]:
    """The loop's own order of examples for every run, step by step."""
    pool = len(materials.splits["train"])
    orders = [batches(materials.name, run.seed, pool, materials.budget) for run in runs]
    return [torch.stack(step).to(materials.device) for step in zip(*orders, strict=True)]


def _log(
    model: Model, losses: Float[Tensor, " step"], lr: float, unmoved: tuple[str, ...]
) -> TrainingLog | FloatingPointError:
    try:
        require_finite(model, lr)
        return TrainingLog(losses=spaced(losses, lr), unmoved=unmoved)
    except FloatingPointError as error:
        return error


# Evaluation of several runs in one pass: each batch of a split is read once and seen by all.
#
# Scores are those of each run alone: by rounding, a prediction may differ at a tie (tests: scores
# alike for every kind of method).


_PROBE = 16
"""Examples on which each run is compared with itself alone before anything is scored."""
# Of the logits' norm. Rounding that trained weights enlarge stays far below; a method that does
# something else in a pass when it no longer trains does not.
_TOLERANCE = {"fp32": 1e-2, "bf16": 1e-1}


def evaluate_all(
    models: Sequence[Model], materials: Materials, split: SplitName, batch_size: int
) -> tuple[list[Evaluation | FloatingPointError], str]:
    """Each model's scores and mean trace; and if they had to be taken one by one, why.

    A model with logits that are not finite is given back as its error.

    `batch_size`: the most examples at a time, over all models together.
    """
    try:
        return evaluate_together(models, materials, split, batch_size), ""
    except (NotEquivalent, torch.OutOfMemoryError) as reason:
        note = f"evaluated alone, not in a pass of {len(models)}: {reason}"
    # Behind the handler: while it runs, the error keeps the memory of what it stopped.
    return [_evaluated(model, materials, split, batch_size) for model in models], note


def _evaluated(
    model: Model, materials: Materials, split: SplitName, batch_size: int
) -> Evaluation | FloatingPointError:
    try:
        return evaluate(model, materials, split, batch_size)
    except FloatingPointError as error:
        return error


@torch.no_grad()
def evaluate_together(
    models: Sequence[Model], materials: Materials, split: SplitName, batch_size: int
) -> list[Evaluation | FloatingPointError]:
    """`evaluate` of all models, each batch shared by all.

    A run gets its share of `batch_size`, or a training batch if that is more: that size fitted with
    all that gradients need. Raises NotEquivalent, before anything is scored, for models whose
    logits differ from those of each alone.
    """
    for model in models:
        model.eval()
    examples = materials.splits[split]
    size = max(materials.budget.batch, batch_size // len(models))
    index = torch.arange(len(examples), device=materials.device)
    parts = [examples.pick(rows) for rows in torch.split(index, size)]
    predicted, traces, tokens = [], [], list[int]()
    outputs = _outputs(models, materials, parts, size, tokens)
    for batch, (output, trace) in zip(parts, outputs, strict=True):
        own = [one.answers(output[run], batch) for run, one in enumerate(models)]
        predicted.append(torch.stack(own))
        traces.append(trace)
    found = torch.cat(predicted, dim=1).cpu().numpy()
    counts = [len(part) for part in parts]

    def of(run: int) -> Evaluation | FloatingPointError:
        own = [{name: values[run] for name, values in trace.items()} for trace in traces]
        try:
            return Evaluation(
                scores=outcomes_of(found[run], materials, split),
                trace=require_trace(mean_trace(list(zip(counts, own, strict=True)))),
                answers=len(np.unique(found[run])),
                tokens=tokens[run],
            )
        except FloatingPointError as error:
            return error

    return [of(run) for run in range(len(models))]


def _outputs(
    models: Sequence[Model],
    materials: Materials,
    parts: Sequence[Batch],
    size: int,
    tokens: list[int],
) -> Iterator[Output]:
    """Each part's outputs; `tokens` gets the tokens that each run's reader reads."""
    stack = Stack(models, materials)
    # Blocks that are compiled see batches of one size only, whatever a split leaves over.
    room = size if materials.device.type == "cuda" else 0
    states = prefetch(materials, stack.taps, [part.rows for part in parts])
    for number, (batch, hidden) in enumerate(zip(parts, states, strict=True)):
        try:
            with autocast(materials):
                output = stack.outputs(batch, hidden, room=room)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise NotEquivalent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        if number == 0:
            tokens += _check_logits(models, materials, batch, output[0])
        yield output


def _check_logits(
    models: Sequence[Model],
    materials: Materials,
    batch: Batch,
    together: Float[Tensor, "run batch answer"],
) -> list[int]:
    """Compare the logits of the first examples with those of each model alone.

    Returns the number of tokens that each model's reader reads.
    """
    tokens = []
    few = batch.pick(torch.arange(min(_PROBE, len(batch)), device=materials.device))
    for run, model in enumerate(models):
        with autocast(materials):
            alone, fused = model(few, materials)
            tokens.append(model.tokens_read(fused))
        apart = (together[run, : len(few)] - alone).float().norm()
        # A run that diverged has NaN logits both ways, which no comparison rejects.
        if apart > _TOLERANCE[materials.budget.precision] * alone.float().norm():
            raise NotEquivalent("the logits of a trained run differ in the pass and alone")
    return tokens


def run_pass(
    method: type[Method], materials: Materials, members: Sequence[PassCell], *, eval_batch: int
) -> list[Outcome | None]:
    """Train all members together: an outcome per member, None for those that are not wanted.

    A single member runs without vmap; so do models that cannot run together, and their records say
    why.
    """
    note = ""
    if len(members) > 1:
        try:
            return _run_together(method, materials, members, eval_batch)
        except (NotEquivalent, torch.OutOfMemoryError) as reason:
            note = f"trained alone, not in a pass of {len(members)}: {reason}"
    # Outside of the handler: while it runs, the error keeps the memory of what it stopped.
    found: list[Outcome | None] = []
    for one in members:
        if note:
            # Each from its own streams, whichever of its neighbours are wanted.
            reseed(one.spec.method, one.spec.task, one.spec.seed)
        found.append(run_alone(method, materials, one, eval_batch=eval_batch, note=note))
    return found


def _compared(members: Sequence[PassCell], materials: Materials) -> str:
    """All that decides the first step of a pass, but for the values of examples and weights."""
    spec, tuned = members[0].spec, members[0].tuned
    what = [spec.method, spec.method_version, spec.settings, tuned.settings, asdict(spec.budget)]
    where = [spec.weights, len(materials.bundle.answers), len(members), str(materials.device)]
    return canonical([*what, *where])


def _run_together(
    method: type[Method], materials: Materials, members: Sequence[PassCell], eval_batch: int
) -> list[Outcome | None]:
    started = time.perf_counter()
    models = [
        build_model(method, {**one.spec.settings, **one.tuned.settings}, materials, one.spec.seed)
        for one in members
    ]
    runs = [PassMember(seed=one.spec.seed, lr=one.tuned.lr) for one in members]
    logs, fits = train_all(models, materials, runs, eval_batch, _compared(members, materials))
    # All of them, wanted or not: what is missing changes no layout, and so no rounding.
    split = members[0].spec.split
    scores, note = evaluate_all(models, materials, split, eval_batch)
    seconds = (time.perf_counter() - started) / len(members)
    notes = (note,) if note else ()
    found: list[Outcome | None] = []
    for member, model, log, fitted, own in zip(members, models, logs, fits, scores, strict=True):
        if not member.wanted:
            found.append(None)
        elif isinstance(log, FloatingPointError):
            found.append(log)
        elif isinstance(own, FloatingPointError):
            found.append(own)
        else:
            found.append(
                outcome(
                    member, model, log, materials, own, fit=fitted, seconds=seconds, notes=notes
                )
            )
    return found
