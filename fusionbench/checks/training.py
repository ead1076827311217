"""Checks of training: gradients reach all weights; a signal is learnt, random labels are not."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused
from fusionbench.checks.kit import CheckFailed, CheckSkipped, check
from fusionbench.checks.toy import BUDGET, SHAPE, TEST_ITEMS, Subject, draw, materials, outputs, run
from fusionbench.harness.model import build_model
from fusionbench.harness.train import evaluate, train

_RATE = 1e-2
_NOTHING = 1e-12
"""Of the largest gradient: what cancels in float64 leaves 1e-16, and no real one is so small."""


@check
def gradients(subject: Subject) -> None:
    """Every trainable parameter is part of the loss's graph."""
    method = subject.build()
    trainable = _trainable(method)
    torch.autograd.backward(loss_of(run(method, *draw(SHAPE))))
    cut_off = [name for name, parameter in trainable.items() if parameter.grad is None]
    if cut_off:
        raise CheckFailed(f"no gradient ever reaches {', '.join(cut_off)}")


@check
def live(subject: Subject) -> str:
    """Every trainable parameter has moved after the declared number of steps."""
    method = subject.build()
    trainable = _trainable(method)
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    # No weight decay: it would move what no gradient reaches.
    optimiser = torch.optim.Adam(trainable.values(), lr=_RATE)
    for step in range(method.live_after_steps):
        optimiser.zero_grad()
        torch.autograd.backward(loss_of(run(method, *draw(SHAPE, seed=step + 1))))
        optimiser.step()
    still = [name for name, values in before.items() if torch.equal(values, trainable[name])]
    if still:
        raise CheckFailed(f"after {method.live_after_steps} steps these stand still: {_few(still)}")
    return f"{len(trainable)} parameters, live_after_steps={method.live_after_steps}"


@check
def influence(subject: Subject) -> None:
    """No trainable parameter cancels out, such as a bias of keys under a softmax."""
    method = subject.jittered().double()
    trainable = _trainable(method)
    tokens, query = (drawn.double() for drawn in draw(SHAPE, batch=6))
    torch.autograd.backward(loss_of(run(method, tokens, query)))
    sizes = {name: float(p.grad.abs().max()) for name, p in trainable.items() if p.grad is not None}
    limit = _NOTHING * max(sizes.values(), default=0.0)
    # What has no gradient at all is the business of the checks before.
    cancelled = [name for name, size in sizes.items() if size <= limit]
    if cancelled:
        raise CheckFailed(f"without any influence on the outputs: {_few(cancelled)}")


def loss_of(fused: Fused) -> Float[Tensor, ""]:
    """Squared error of all outputs against random targets, plus the method's own terms."""
    rng = torch.Generator().manual_seed(3)
    total = fused.tokens.new_zeros(())
    for name, values in outputs(fused):
        # What is injected counts by what it does to the answer.
        if name.startswith("injection"):
            continue
        target = torch.randn(values.shape, generator=rng).to(values.dtype)
        total = total + ((values - target) ** 2).mean()
    for term in fused.losses.values():
        total = total + term
    return total


def _trainable(method: Method) -> dict[str, torch.nn.Parameter]:
    found = {name: p for name, p in method.named_parameters() if p.requires_grad}
    if not found:
        raise CheckSkipped("has no trainable parameter")
    return found


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


_LEARNT = 0.8
_CHANCE_LOSS = math.log(2)
_TOO_GOOD = 0.75
"""Of the loss of a guesser, over the last third of the steps."""
_SPREAD = 4.5 * math.sqrt(0.25 / TEST_ITEMS)


@check
def learns_signal(subject: Subject) -> str:
    """With the harness it learns, in 30 steps, a label that is in every hidden state."""
    score, _ = _trained(subject, "planted")
    if score < _LEARNT:
        raise CheckFailed(f"accuracy {score:.2f} on a signal that every layer shows")
    return f"accuracy {score:.2f}"


@check
def random_labels(subject: Subject) -> str:
    """Random labels, each seen once, are predicted neither in training nor in the test."""
    score, losses = _trained(subject, "random")
    late = float(np.mean(losses[-len(losses) // 3 :]))
    if late < _TOO_GOOD * _CHANCE_LOSS:
        raise CheckFailed(
            f"training loss {late:.2f} on random labels, chance is {_CHANCE_LOSS:.2f}: "
            "the answers leak into training"
        )
    if abs(score - 0.5) > _SPREAD:
        raise CheckFailed(f"accuracy {score:.2f} on random labels")
    return f"accuracy {score:.2f}, training loss {late:.2f}"


def _trained(subject: Subject, labels: str) -> tuple[float, tuple[float, ...]]:
    """Test accuracy and training losses."""
    shared = materials("planted" if labels == "planted" else "random")
    model = build_model(subject.cls, subject.settings, shared, 0)
    log = train(model, shared, 0, BUDGET.lrs[0])
    scores = evaluate(model, shared, "test", TEST_ITEMS).scores
    return float(scores.mean()), log.losses
