"""Training of a vision-language model on one or several processes.

A step is a function of the global batch: rows are divided among processes and micro-batches, every
row has a weight that counts the whole batch, a method's own losses count by the images of a pass,
and the gradients are summed. So the number of processes and the size of a micro-batch change a
result by rounding only, except for a loss that is no mean over images: the balance of a router is
that of each pass.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionbench.api.errors import UserError, one_of
from fusionbench.api.types import Unsupported
from fusionbench.harness.train import MUON, Optimisers, schedule
from fusionbench.records.cell import MEANS, Budget
from fusionbench.vlm.checkpoint import Checkpoints, fusion_buffers, whole
from fusionbench.vlm.processes import World

STRATEGIES = ("ddp", "shard")


class Data(Protocol):
    """Training rows by index."""

    def order(self, step: int) -> Sequence[int]:
        """Rows of the global batch of a step; a function of the seed and the step alone."""

    def labelled(self, index: int) -> int:
        """Number of labelled tokens of a row."""

    def images(self, index: int) -> int:
        """Number of images of a row."""

    def fetch(self, indices: Sequence[int]) -> Any:
        """The rows, as the model takes them."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model is trained; `micro_batch` and `strategy` change the result as the module says."""

    budget: Budget
    """Steps, global batch, optimiser, weight decay, warm-up, clipping and precision."""
    lr: float
    """Peak learning rate of the matrices; `budget.vector_lr` is that of all other parameters."""
    mean: str = "token"
    """Weight of a row in the loss. `token`: the mean over all labelled tokens of the global batch.
    `sample`: the mean over rows of each row's mean over its tokens; short answers weigh more."""
    micro_batch: int = 0
    """Rows of one forward pass of a process; 0: all its rows of a step."""
    strategy: str = "ddp"
    """`ddp`: each process has all weights. `shard`: weights, gradients and moments are divided
    among the processes (`fully_shard`), AdamW only."""

    def __post_init__(self) -> None:
        one_of("mean", self.mean, MEANS)
        one_of("strategy", self.strategy, STRATEGIES)
        if self.micro_batch < 0:
            raise UserError(f"micro_batch is {self.micro_batch}; it must be 0 (all rows) or more")
        if self.strategy == "shard" and self.budget.optimiser == MUON:
            raise UserError(
                "strategy shard cannot train with Muon, which needs each matrix whole",
                "use optimiser adamw, or strategy ddp",
            )


@dataclass(frozen=True, kw_only=True)
class TrainingHistory:
    """What a training did."""

    losses: tuple[float, ...] = ()
    """Loss of the global batch at each step; empty for a model without trainable parameters."""
    unmoved: tuple[str, ...] = ()
    """Trainable parameters that no gradient ever reached."""
    resumed: int = 0
    """Steps that were read from a checkpoint."""
    notes: tuple[str, ...] = ()
    """Checkpoints that could not be used, and why."""


def train(
    model: nn.Module,
    data: Data,
    setup: Setup,
    *,
    world: World,
    folder: Path | None = None,
    every: int = 0,
    fingerprint: str = "",
    units: Sequence[nn.Module] = (),
    report: Callable[[int, float], None] | None = None,
) -> TrainingHistory:
    """Train the parameters of `model` that require a gradient, in place and on every process.

    `model(rows, weights, share)` returns the weighted sum of the rows' losses and `share` (the
    pass's part of the step's images) times its own. With `folder`, a checkpoint is written every
    `every` steps and at the end, and training continues from the last whose `fingerprint` equals.
    `units`: with `shard`, modules that are gathered one by one, e.g. the layers of the language
    model. `report(step, loss)` is called after each step, in every process. A model that was
    sharded cannot be sharded again. Whatever `forward` opens must stay open until after `backward`.
    Raises FloatingPointError in every process if the loss stops being finite, and Unsupported for
    parameters without dimensions that would have to be sharded.
    """
    if not any(p.requires_grad for p in model.parameters()):
        return TrainingHistory()
    model.train()
    model.zero_grad(set_to_none=True)
    wrapped = _wrapped(model, setup, world, units)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimisers = Optimisers(list(trained.values()), setup.budget, setup.lr)
    kept = partial(fusion_buffers, model)
    keeper = Checkpoints(folder, fingerprint, trained, optimisers, world, kept)
    begun, losses = keeper.resume()
    for step in range(begun, setup.budget.steps):
        loss = _gradients(wrapped, data, step, setup, world)
        nn.utils.clip_grad_norm_(trained.values(), setup.budget.clip)
        optimisers.step(schedule(step, setup.budget))
        model.zero_grad(set_to_none=True)
        losses.append(loss)
        if every and ((step + 1) % every == 0 or step + 1 == setup.budget.steps):
            keeper.write(losses)
        if report is not None:
            report(step, loss)
    unmoved, notes = _without_gradient(trained, optimisers), tuple(keeper.notes)
    return TrainingHistory(losses=tuple(losses), unmoved=unmoved, resumed=begun, notes=notes)


def _require_finite(loss: float, step: int, setup: Setup) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss:g} at step {step + 1} of {setup.budget.steps} "
            f"at learning rate {setup.lr:g}"
        )


def _gradients(
    wrapped: nn.Module,
    data: Data,
    step: int,
    setup: Setup,
    world: World,
) -> float:
    """Add the gradient of the global batch to the parameters'; return its loss.

    Raises FloatingPointError if it is not finite.
    """
    order = data.order(step)
    weights = row_weights(order, data, setup.mean)
    images = {row: data.images(row) for row in order}
    of_all = max(1, sum(images[row] for row in order))
    parts = micro_batches(order, world.rank, world.size, setup.micro_batch)
    bf16 = setup.budget.precision == "bf16"
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for number, (rows, counted) in enumerate(parts):
        own = torch.tensor([weights[row] * counted for row in rows], device=world.device)
        share = counted * sum(images[row] for row in rows) / of_all
        with _synchronised(wrapped, number == len(parts) - 1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                loss = wrapped(data.fetch(rows), own, share)
            # Both strategies divide the sum over the processes by their number.
            torch.autograd.backward(loss * world.size)
        total += loss.detach()
    loss_of_all = float(world.total(total))
    _require_finite(loss_of_all, step, setup)
    return loss_of_all


def row_weights(order: Sequence[int], data: Data, mean: str) -> Mapping[int, float]:
    """Weight of each row's summed loss, so that the weighted sum over `order` is the mean.

    Raises ValueError for a row without a labelled token.
    """
    labelled = {row: data.labelled(row) for row in order}
    if empty := sorted(row for row, count in labelled.items() if count < 1):
        raise ValueError(f"training rows {empty[:5]} have no labelled token")
    if mean == "sample":
        return {row: 1 / (len(order) * count) for row, count in labelled.items()}
    total = sum(labelled[row] for row in order)
    return dict.fromkeys(labelled, 1 / total)


def micro_batches(
    order: Sequence[int], rank: int, size: int, micro_batch: int
) -> list[tuple[list[int], int]]:
    """A process's rows of a step, forward pass by forward pass, each with 1 or 0.

    Every process has the same number of passes, because each pass of sharded weights is a
    collective operation; one that has run out of rows repeats its first with the factor 0.
    Raises UserError if there are fewer rows than processes.
    """
    if len(order) < size:
        raise UserError(f"a batch of {len(order)} rows cannot be divided among {size} processes")
    own = list(order[rank::size])
    most = math.ceil(len(order) / size)
    length = micro_batch or most
    cut = [own[first : first + length] for first in range(0, most, length)]
    return [(rows, 1) if rows else (own[:1], 0) for rows in cut]


def _wrapped(model: nn.Module, setup: Setup, world: World, units: Sequence[nn.Module]) -> nn.Module:
    """The model with its gradients averaged over the processes."""
    if world.size == 1:
        return model
    if setup.strategy == "shard":
        return _sharded(model, world, units)
    # Buffers are constants, equal in all processes; the option is called so from torch 2.14 on.
    names = ("forward_sync_buffers", "broadcast_buffers")
    known = inspect.signature(DistributedDataParallel).parameters
    constant: dict[str, Any] = {next(name for name in names if name in known): False}
    # A parameter that a batch does not use gets no gradient: DDP has to look which, or it waits
    # for ever.
    return DistributedDataParallel(model, find_unused_parameters=True, **constant)


def _sharded(model: nn.Module, world: World, units: Sequence[nn.Module]) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if hasattr(model, "set_requires_gradient_sync"):
        raise UserError(
            "the model is sharded already; strategy shard trains one stage, the last",
            "use strategy ddp for the stages before it, which train the projector alone",
        )
    scalars = {name: p for name, p in model.named_parameters() if not p.ndim}
    if trained := [name for name, p in scalars.items() if p.requires_grad]:
        raise Unsupported(
            f"strategy shard cannot divide a parameter without dimensions: {', '.join(trained)}"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*units, model):
        fully_shard(part, mesh=mesh, ignored_params=set(scalars.values()))
    return model


def _synchronised(wrapped: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Gradients are averaged over the processes in the last micro-batch only."""
    if isinstance(wrapped, DistributedDataParallel):
        return nullcontext() if last else wrapped.no_sync()
    if (set_sync := getattr(wrapped, "set_requires_gradient_sync", None)) is not None:
        set_sync(last)
    return nullcontext()


def _without_gradient(trained: Mapping[str, Tensor], optimisers: Optimisers) -> tuple[str, ...]:
    moments = {name: optimisers.moment(p) for name, p in trained.items()}
    return tuple(name for name, m in moments.items() if m is None or not bool(whole(m).any()))
