"""Linear probes of every hidden state, task by task, kept beside the records.

`probe.py` finds the scores; here they are bound to what made them and written once: a map that is
there for the same encoder, data and sizes is kept, one of anything else is never overwritten.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError
from fusionbench.api.tasks import Split, Task, TaskData, data_hash
from fusionbench.models.encoders.build import build
from fusionbench.models.encoders.catalog import describe
from fusionbench.records.probes import ProbeMap, probe_file, read_probe, write_probe
from fusionbench.registry.catalog import TaskCard
from fusionbench.registry.plugins import load_task
from fusionbench.registry.provenance import code_state, hardware, software

# What each hidden state of an encoder knows about each task: linear probes, one per layer.
#
# Features of an image: CLS and the mean of the patches of one hidden state, side by side. One
# multinomial logistic regression for each question (the query is thereby known exactly); its L2
# penalty is chosen on val. Suffixes: E example, F feature, C class.


PENALTIES = (1e-3, 1e-2, 1e-1)
_FEW = 10
"""With fewer training examples a question is answered with its most frequent answer."""


@dataclass(frozen=True, kw_only=True)
class ProbeLimits:
    """Examples used of each split, from its front."""

    train: int = 1000
    val: int = 300
    test: int = 500


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
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


def probe_layers(
    encoder: Encoder, task: Task, data: TaskData, *, limits: ProbeLimits
) -> list[Score]:
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


def _part(encoder: Encoder, data: TaskData, split: Split, limit: int) -> LayerFeatures:
    rows, position = np.unique(split.images[:limit], return_inverse=True)
    pooled = features(encoder, data.images[rows])
    return LayerFeatures(
        features=pooled[:, torch.from_numpy(position)],
        answers=torch.from_numpy(np.asarray(split.answers[:limit], dtype=np.int64)),
        questions=split.questions[:limit],
    )


def _predict(
    train: LayerFeatures, others: Sequence[LayerFeatures], layer: int, penalty: float
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


def _asked(part: LayerFeatures, question: str) -> Int[Tensor, " found"]:
    return torch.tensor(
        [i for i, asked in enumerate(part.questions) if asked == question], dtype=torch.int64
    )


def _scores(
    task: Task, predicted: Int[Tensor, " example"], part: LayerFeatures
) -> Float[np.ndarray, " example"]:
    return np.asarray(task.score(predicted.numpy(), part.answers.numpy()), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One task's map, and whether it was there before."""

    map: ProbeMap
    file: Path
    kept: bool


def probe_tasks(
    encoder: str, tasks: Sequence[TaskCard], out: Path, *, image_size: int, limits: ProbeLimits
) -> Iterator[Probed]:
    """Probe every layer on every task; a task with an encoder of its own is probed on that one.

    Raises UserError where a map of another encoder, of other data or sizes is in the way.
    """
    built: dict[str, Encoder] = {}
    for card in tasks:
        name = card.encoder or encoder
        size = 0 if card.encoder else image_size
        task = load_task(card)
        data = task.load()
        planned = _empty(card, task, data, name, size, limits)
        file = probe_file(out, card.name)
        if file.exists():
            yield Probed(map=_kept(file, planned), file=file, kept=True)
            continue
        if name not in built:
            built[name] = build(name, image_size=size)
        scores = probe_layers(built[name], task, data, limits=limits)
        found = {"layers": tuple(s.test for s in scores), "val": tuple(s.val for s in scores)}
        made = ProbeMap(**{**vars(planned), **found})
        yield Probed(map=made, file=write_probe(out, made), kept=False)


def _empty(  # noqa: PLR0913  (everything that a map is bound to)
    card: TaskCard, task: Task, data: TaskData, encoder: str, image_size: int, limits: ProbeLimits
) -> ProbeMap:
    """The map as it will be, without its scores."""
    about = describe(encoder, image_size=image_size)
    return ProbeMap(
        encoder=about.recorded,
        weights=about.weights,
        image_size=about.size,
        task=card.name,
        task_version=card.version,
        data=data_hash(data),
        group=card.group,
        metric=task.metric,
        chance=task.chance,
        layers=(),
        val=(),
        n=min(limits.test, len(data.test)),
        n_train=min(limits.train, len(data.train)),
        n_val=min(limits.val, len(data.val)),
        provenance={
            "code": dict(code_state()),
            "software": dict(software()),
            "hardware": dict(hardware("cpu")),
        },
    )


def _kept(file: Path, planned: ProbeMap) -> ProbeMap:
    """The map that is there. Raises UserError if it is not the one that would be made."""
    there = read_probe(file)
    for key, value in planned.identity.items():
        if there.identity[key] != value:
            raise UserError(
                f"{file} was made with another {key}: {there.identity[key]}, now {value}",
                "choose another --out, or remove that file first",
            )
    return there
