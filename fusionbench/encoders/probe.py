"""What each hidden state of an encoder knows about each task: linear probes, one per layer.

Features of an image: CLS and the mean of the patches of one hidden state, side by side. One
multinomial logistic regression for each question (the query is thereby known exactly); its L2
penalty is chosen on val. Suffixes: E example, F feature, C class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api.encoder import Encoder
from fusionbench.api.task import Split, Task, TaskData

PENALTIES = (1e-3, 1e-2, 1e-1)
_FEW = 10
"""With fewer training examples a question is answered with its most frequent answer."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Examples used of each split, from its front."""

    train: int = 1000
    val: int = 300
    test: int = 500


@dataclass(frozen=True, kw_only=True)
class Part:
    """A cut split: one row of features per example, per layer."""

    features: Float[Tensor, "layer example feature"]
    answers: Int[Tensor, " example"]
    questions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one layer's probe reached."""

    val: float
    """Mean score."""
    tests: Float[np.ndarray, " example"]
    """Score of each test example."""

    @property
    def test(self) -> float:
        """Mean score."""
        return float(self.tests.mean())


def probe_layers(encoder: Encoder, task: Task, data: TaskData, *, limits: Limits) -> list[Score]:
    """Scores of a probe on each of `hs[0..L]`."""
    train, val, test = (
        _part(encoder, data, split, limit)
        for split, limit in (
            (data.train, limits.train),
            (data.val, limits.val),
            (data.test, limits.test),
        )
    )
    scores = []
    for layer in range(encoder.shape.layers + 1):
        tried = [_predict(train, [val, test], layer, penalty) for penalty in PENALTIES]
        found = [
            Score(val=float(_scores(task, a, val).mean()), tests=_scores(task, b, test))
            for a, b in tried
        ]
        scores.append(max(found, key=lambda score: score.val))
    return scores


def features(
    encoder: Encoder, images: np.ndarray, *, batch: int = 128
) -> Float[Tensor, "layer image feature"]:
    """CLS (where there is one) and mean patch of every hidden state."""
    prefix = encoder.shape.prefix
    pooled = []
    for chunk in torch.split(torch.from_numpy(images), batch):
        states = torch.stack(encoder.hidden_states(chunk))
        cls = states[:, :, : min(prefix, 1)].flatten(2)
        pooled.append(torch.cat([cls, states[:, :, prefix:].mean(dim=2)], dim=-1))
    return torch.cat(pooled, dim=1)


def fit(
    x_EF: Float[Tensor, "example feature"],
    answers: Int[Tensor, " example"],
    *,
    classes: int,
    penalty: float,
) -> Float[Tensor, "feature class"]:
    """Weights (a row of ones is the caller's) of a logistic regression, by L-BFGS."""
    weights = torch.zeros(x_EF.shape[1], classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x_EF @ weights, answers) + penalty * weights.square().sum() / 2
        torch.autograd.backward(value)
        return value

    # torch leaves it without types.
    step: Callable[..., object] = optimiser.step
    step(loss)
    return weights.detach()


def _part(encoder: Encoder, data: TaskData, split: Split, limit: int) -> Part:
    rows, position = np.unique(split.images[:limit], return_inverse=True)
    pooled = features(encoder, data.images[rows])
    return Part(
        features=pooled[:, torch.from_numpy(position)],
        answers=torch.from_numpy(np.asarray(split.answers[:limit], dtype=np.int64)),
        questions=split.questions[:limit],
    )


def _predict(
    train: Part, others: Sequence[Part], layer: int, penalty: float
) -> list[Int[Tensor, " example"]]:
    x = train.features[layer]
    mean, std = x.mean(0), x.std(0) + 1e-6
    scaled = [_with_one((part.features[layer] - mean) / std) for part in (train, *others)]
    common = int(train.answers.mode().values)
    found = [torch.full_like(part.answers, common) for part in others]
    for question in set(train.questions):
        mine = _asked(train, question)
        known, seen = torch.unique(train.answers[mine], return_inverse=True)
        if len(mine) < _FEW or len(known) < 2:
            weights = None
        else:
            weights = fit(scaled[0][mine], seen, classes=len(known), penalty=penalty)
        for answers, part, rows in zip(found, others, scaled[1:], strict=True):
            at = _asked(part, question)
            guess = train.answers[mine].mode().values
            answers[at] = guess if weights is None else known[(rows[at] @ weights).argmax(1)]
    return found


def _with_one(x_EF: Float[Tensor, "example feature"]) -> Float[Tensor, "example more"]:
    return torch.cat([x_EF, torch.ones(len(x_EF), 1)], dim=1)


def _asked(part: Part, question: str) -> Int[Tensor, " found"]:
    return torch.tensor(
        [i for i, asked in enumerate(part.questions) if asked == question], dtype=torch.int64
    )


def _scores(
    task: Task, predicted: Int[Tensor, " example"], part: Part
) -> Float[np.ndarray, " example"]:
    return np.asarray(task.score(predicted.numpy(), part.answers.numpy()), dtype=np.float64)
