"""Training of one model: AdamW or Muon, warm-up and cosine, clipping, a fixed number of steps.

The same for every method and control; no early stopping. A pass stacks the weights of its runs
along a first axis. Muon takes the last two axes as the matrix, so each run gets the update that it
gets alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusionbench.api.seeding import stream
from fusionbench.api.tasks import SplitName, judged, require_outcomes
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import NO_ANSWER, Model
from fusionbench.records.cell import Budget

MUON = "muon"
_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalised(
    matrix: Float[Tensor, "*run rows columns"],
) -> Float[Tensor, "*run rows columns"]:
    """The matrix with all singular values near 1 (between 0.7 and 1.2), by Newton-Schulz steps.

    X <- a X + (b A + c A^2) X with A = X X^T, from X divided by its Frobenius norm (Jordan et al.
    2024, "Muon"). In float32: in bfloat16, as `torch.optim.Muon` has it, rounding turns the small
    singular directions, and runs of a pass would leave the runs alone.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = (matrix if wide else matrix.mT).float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x if wide else x.mT).to(matrix.dtype)


class Muon:
    """Muon with Nesterov momentum 0.95 on the last two axes of each parameter.

    m <- 0.95 m + 0.05 g;  W <- (1 - lr wd) W - lr sqrt(rows / columns) O(0.95 m + 0.05 g).
    The factor sqrt(rows / columns) (Bernstein 2025, "Deriving Muon"; `spectral_unclamped` in
    PyTorch) makes the change of a layer's output independent of its width: a method that repeats
    its channels takes the steps of one that does not.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        """Each with `params`, `lr` and `weight_decay`."""
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, weight: Tensor, lr: float, decay: float) -> None:
        gradient, state = weight.grad, self.state.setdefault(weight, {})
        if gradient is None:
            return
        if not state:
            state["exp_avg"] = torch.zeros_like(gradient)
        mean = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalised(gradient.lerp(mean, _MOMENTUM))
        rows, columns = weight.shape[-2:]
        weight.mul_(1 - lr * decay).add_(update, alpha=-lr * math.sqrt(rows / columns))


class Optimisers:
    """All optimisers of a training as one.

    `axes`: leading axes of every parameter that belong to the runs of a pass. Matrices have the
    learning rate `lr`. Parameters with at most one dimension of their own (biases, norms, gates,
    mixing weights) have `vector_lr` and no weight decay. With Muon, parameters of three and more
    dimensions are left to AdamW at `vector_lr`.
    """

    def __init__(
        self, parameters: Sequence[Tensor], budget: Budget, lr: float, *, axes: int = 0
    ) -> None:
        other = budget.vector_lr or lr
        own = [(p, p.ndim - axes) for p in parameters]
        free = [p for p, dims in own if dims <= 1]
        matrices = [p for p, dims in own if dims == 2]
        larger = [p for p, dims in own if dims > 2]
        muon = budget.optimiser == MUON
        decayed = larger if muon else [p for p, dims in own if dims > 1]
        groups = [
            _group(decayed, other if muon else lr, budget.weight_decay),
            _group(free, other, 0.0),
        ]
        filled = [group for group in groups if group["params"]]
        self.parts: list[torch.optim.AdamW | Muon] = []
        if filled:
            self.parts.append(torch.optim.AdamW(filled, lr=lr, fused=True))
        if muon and matrices:
            self.parts.append(Muon([_group(matrices, lr, budget.weight_decay)]))

    def step(self, share: float) -> None:
        """Move all parameters at this share of their peak learning rates."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * share
            part.step()

    def moment(self, parameter: Tensor) -> Tensor | None:
        """The parameter's running mean of gradients; None before its first gradient."""
        found = [part.state[parameter] for part in self.parts if parameter in part.state]
        return found[0].get("exp_avg") if found else None


def _group(params: Sequence[Tensor], peak: float, decay: float) -> dict[str, Any]:
    """Parameters with one learning rate; `peak` is the rate at the top of the schedule."""
    return {"params": list(params), "weight_decay": decay, "lr": peak, "peak": peak}


_LOSS_POINTS = 21


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """Losses of a training and the parameters that it did not train."""

    losses: tuple[float, ...]
    """The loss at evenly spaced steps, first and last included; empty without parameters."""
    unmoved: tuple[str, ...]
    """Parameters of the fusion that no gradient ever reached."""


def train(model: Model, materials: Materials, seed: int, lr: float) -> TrainingLog:
    """Train in place. Raises FloatingPointError if the loss or a weight stops being finite."""
    budget = materials.budget
    if not model.trainable:
        return TrainingLog(losses=(), unmoved=())
    optimisers = Optimisers([p for p in model.parameters() if p.requires_grad], budget, lr)
    pool = materials.splits["train"]
    losses = []
    model.train()
    for step, picked in enumerate(batches(materials.name, seed, len(pool), budget)):
        with autocast(materials):
            loss = model.loss(pool.pick(picked.to(materials.device)), materials)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), budget.clip)
        optimisers.step(schedule(step, budget))
        losses.append(loss.detach())
    require_finite(model, lr)
    return TrainingLog(
        losses=spaced(torch.stack(losses), lr),
        unmoved=_without_gradient(model.fusion, optimisers),
    )


def spaced(losses: Float[Tensor, " step"], lr: float) -> tuple[float, ...]:
    """The loss at evenly spaced steps. Raises FloatingPointError for a run that diverged."""
    history = losses.float().cpu()
    if not bool(torch.isfinite(history).all()):
        raise FloatingPointError(f"the loss became {history[-1]:g} at learning rate {lr:g}")
    points = np.unique(np.linspace(0, len(history) - 1, _LOSS_POINTS).round().astype(int))
    return tuple(round(float(history[step]), 6) for step in points)


def require_finite(model: nn.Module, lr: float) -> None:
    """Raise FloatingPointError for a trained model with a weight that is infinite or NaN.

    The last step's gradient may be infinite where all losses were finite.
    """
    trained = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
    if trained and not bool(torch.stack([torch.isfinite(p).all() for _, p in trained]).all()):
        wrong = next(name for name, p in trained if not bool(torch.isfinite(p).all()))
        raise FloatingPointError(f"{wrong} became infinite or NaN at learning rate {lr:g}")


def schedule(step: int, budget: Budget) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then a cosine to 0."""
    rising = max(1, round(budget.warmup * budget.steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, budget.steps - rising)
    return 0.5 * (1 + math.cos(math.pi * done))


def batches(task: str, seed: int, pool: int, budget: Budget) -> Iterator[Int[Tensor, " batch"]]:
    """Rows of the pool, batch by batch: one shuffle of the drawn examples an epoch.

    It depends on task and seed alone, never on the method: cells of one seed are paired.
    """
    examples = drawn(task, seed, pool, budget)
    order = stream(task, seed, "order")
    wanted = budget.steps * budget.batch
    epochs = [order.permutation(examples) for _ in range(math.ceil(wanted / len(examples)))]
    rows = torch.from_numpy(np.concatenate(epochs)[:wanted])
    yield from torch.split(rows, budget.batch)


def drawn(task: str, seed: int, pool: int, budget: Budget) -> Int[np.ndarray, " example"]:
    """Rows of the pool that a seed trains on, by task and seed alone."""
    resample = stream(task, seed, "resample")
    if budget.resample == "bootstrap":
        return resample.integers(0, pool, size=pool)
    if budget.resample == "distinct":
        # At most three quarters of the pool: seeds that draw all of it would not differ.
        return resample.permutation(pool)[: min(budget.draw, max(1, 3 * pool // 4))]
    return np.arange(pool)


def autocast(materials: Materials) -> torch.autocast:
    """bf16 autocast where the budget says so, on any device."""
    bf16 = materials.budget.precision == "bf16"
    return torch.autocast(materials.device.type, torch.bfloat16, enabled=bf16)


def _without_gradient(fusion: nn.Module, optimisers: Optimisers) -> tuple[str, ...]:
    """Parameters whose first moment is zero; weight decay moves even those without a gradient."""
    return tuple(
        name
        for name, p in fusion.named_parameters()
        if p.requires_grad and ((moment := optimisers.moment(p)) is None or not bool(moment.any()))
    )


Scores = Float[np.ndarray, " example"]
Trace = Mapping[str, list[float]]


class Evaluation(NamedTuple):
    """One model on one split."""

    scores: Scores
    """Of each example, in the split's order."""
    trace: Trace
    """The mean over the examples."""
    answers: int
    """Distinct answers that the reader gave."""
    tokens: int
    """Tokens that the fusion handed to the reader, behind the projector."""


@torch.no_grad()
def evaluate(model: Model, materials: Materials, split: SplitName, batch_size: int) -> Evaluation:
    """Score one model on a split, in batches of at most `batch_size` examples.

    Raises FloatingPointError for logits or a trace that are not finite.
    """
    model.eval()
    examples = materials.splits[split]
    predicted: list[Int[np.ndarray, " part"]] = []
    traces: list[tuple[int, Mapping[str, Tensor]]] = []
    everything = torch.arange(len(examples), device=materials.device)
    for rows in torch.split(everything, batch_size):
        batch = examples.pick(rows)
        with autocast(materials):
            output, fused = model(batch, materials)
        predicted.append(model.answers(output, batch).cpu().numpy())
        traces.append((len(batch), fused.trace))
    found = np.concatenate(predicted)
    return Evaluation(
        scores=outcomes_of(found, materials, split),
        trace=require_trace(mean_trace(traces)),
        answers=len(np.unique(found)),
        tokens=model.tokens_read(fused),
    )


def outcomes_of(
    predicted: Int[np.ndarray, " example"], materials: Materials, split: SplitName
) -> Float[np.ndarray, " example"]:
    """Outcome of each example of a split from the reader's answers (class indices).

    Raises FloatingPointError for an example without an answer, ValueError for outcomes that are not
    from 0 to 1.
    """
    task, bundle = materials.task, materials.bundle
    if lost := int((predicted == NO_ANSWER).sum()):
        raise FloatingPointError(
            f"the logits of {lost} of {len(predicted)} {split} examples are not finite"
        )
    if not task.free_text:
        found = task.score(predicted, bundle.split(split).answers)
        return require_outcomes(found, len(predicted), task.chance)
    return judged(task, [bundle.answers[index] for index in predicted], bundle.scored(split))


def require_trace(trace: Trace) -> Trace:
    """The trace; FloatingPointError for one with a value that is infinite or NaN."""
    for name, values in trace.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(f"the trace {name!r} is not finite")
    return trace


def mean_trace(traces: Sequence[tuple[int, Mapping[str, Tensor]]]) -> Trace:
    """The mean over all examples from each batch's size and its means; empty without a batch."""
    total = sum(count for count, _ in traces)
    means: dict[str, list[float]] = {}
    for name in sorted(traces[0][1]) if traces else ():
        summed = sum(count * trace[name].float().cpu() for count, trace in traces)
        values = torch.as_tensor(summed).flatten() / total
        means[name] = [round(float(value), 6) for value in values]
    return means
