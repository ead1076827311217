"""Trained as in a study: a signal is learnt, labels drawn by lot are not."""

import math

import numpy as np

from fusionbench.checks.materials import BUDGET, TEST_ITEMS, materials
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import Subject
from fusionbench.checks.suite import check
from fusionbench.harness.model import build_model
from fusionbench.harness.train import evaluate, train

_LEARNT = 0.8
_CHANCE_LOSS = math.log(2)
_TOO_GOOD = 0.75
"""Of the loss of a guesser, over the last third of the steps."""
_SPREAD = 4.5 * math.sqrt(0.25 / TEST_ITEMS)


@check
def learns_signal(subject: Subject) -> str:
    """With the harness it learns, in 30 steps, a label that every hidden state shows."""
    score, _ = _trained(subject, "planted")
    if score < _LEARNT:
        raise CheckFailed(f"accuracy {score:.2f} on a signal that every layer shows")
    return f"accuracy {score:.2f}"


@check
def random_labels(subject: Subject) -> str:
    """Labels drawn by lot, each seen once, are learnt neither in training nor for the test."""
    score, losses = _trained(subject, "random")
    late = float(np.mean(losses[-len(losses) // 3 :]))
    if late < _TOO_GOOD * _CHANCE_LOSS:
        raise CheckFailed(
            f"training loss {late:.2f} on labels drawn by lot, chance is {_CHANCE_LOSS:.2f}: "
            "the answers leak into training"
        )
    if abs(score - 0.5) > _SPREAD:
        raise CheckFailed(f"accuracy {score:.2f} on labels drawn by lot")
    return f"accuracy {score:.2f}, training loss {late:.2f}"


def _trained(subject: Subject, labels: str) -> tuple[float, tuple[float, ...]]:
    """Test accuracy and training losses."""
    shared = materials("planted" if labels == "planted" else "random")
    model = build_model(subject.cls, subject.settings, shared, 0)
    log = train(model, shared, 0, BUDGET.lrs[0])
    scores, _ = evaluate(model, shared, "test", TEST_ITEMS)
    return float(scores.mean()), log.losses
