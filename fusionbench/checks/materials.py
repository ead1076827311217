"""A task made of thin air for the real harness: a signal in `hs[0]`, or labels drawn by lot."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusionbench.api.fusion import Tap
from fusionbench.api.seeding import stream
from fusionbench.api.task import Scoring
from fusionbench.checks.reading import READER
from fusionbench.checks.subject import SHAPE
from fusionbench.checks.toy import ToyEncoder
from fusionbench.encoders.features import FeatureKey
from fusionbench.harness.bundle import Bundle, Examples
from fusionbench.harness.materials import Materials
from fusionbench.harness.stepping import States
from fusionbench.records.cell import Budget

BUDGET = Budget(
    steps=30,
    batch=32,
    lrs=(3e-3,),
    resample="none",
    reader_width=READER.width,
    query_dim=SHAPE.query_dim,
)
"""Every training example is seen once: a falling loss cannot come from learning by heart."""
TEST_ITEMS = 256
_QUESTIONS = ("is it there?", "do you see it?")
_SIGNAL = 1.5


class YesOrNo(Scoring):
    """Two answers, each as often."""

    chance = 0.5


@dataclass(kw_only=True)
class ToyMaterials(Materials):
    """Materials whose hidden states lie in memory."""

    stack: Float[Tensor, "state image token dim"]

    def states(self, rows: Int[Tensor, " example"]) -> States:
        """The hidden states of these images, by tap."""

        def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            return torch.stack([self.stack[list(tap)][:, rows].mean(dim=0) for tap in taps])

        return gather


def materials(
    labels: Literal["planted", "random"],
    *,
    words: tuple[str, str] = ("no", "yes"),
    flipped: bool = False,
    budget: Budget = BUDGET,
) -> ToyMaterials:
    """Hidden states that hold the labels, or know nothing of them.

    `words` are the answers' texts, `flipped` exchanges every answer; the images stay the same.
    """
    train, test = budget.steps * budget.batch, TEST_ITEMS
    draws = stream("checks", labels)
    answers = draws.integers(0, 2, train + test)
    tokens = draws.standard_normal((train + test, SHAPE.tokens, SHAPE.dim)).astype(np.float32)
    if labels == "planted":
        way = draws.standard_normal(SHAPE.dim)
        way *= _SIGNAL / np.linalg.norm(way) * np.sqrt(2)
        tokens += ((2 * answers - 1)[:, None, None] * way).astype(np.float32)
    encoder = ToyEncoder(SHAPE)
    given = 1 - answers if flipped else answers
    return ToyMaterials(
        name=f"check_{labels}",
        task=YesOrNo(),
        bundle=_bundle(given, train, words, draws.integers(0, len(_QUESTIONS), train + test)),
        budget=budget,
        shape=SHAPE,
        key=FeatureKey(weights="", size=0, images="", count=0, precision="fp32", dtype="float32"),
        device=torch.device("cpu"),
        encoder=encoder,
        stack=encoder.states_from(torch.from_numpy(tokens)),
    )


def _bundle(
    answers: Int[np.ndarray, " example"],
    train: int,
    words: tuple[str, str],
    questions: Int[np.ndarray, " example"],
) -> Bundle:
    everything = Examples(
        items=tuple(map(str, range(len(answers)))),
        groups=tuple(map(str, range(len(answers)))),
        rows=np.arange(len(answers)),
        questions=questions,
        answers=answers,
    )
    first, rest = _part(everything, slice(0, train)), _part(everything, slice(train, None))
    return Bundle(
        answers=words,
        questions=_QUESTIONS,
        train=first,
        val=rest,
        test=rest,
        images="",
        count=len(answers),
    )


def _part(whole: Examples, rows: slice) -> Examples:
    return replace(
        whole,
        items=whole.items[rows],
        groups=whole.groups[rows],
        rows=whole.rows[rows],
        questions=whole.questions[rows],
        answers=whole.answers[rows],
    )
