"""Scores of a trained model on local tasks and benchmarks, from the text of its answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.benchmarks import Answer, Asked, Benchmark, Item, stream
from fusionbench.api.sources import Source
from fusionbench.api.tasks import ScoredItems, Scoring, SplitName, judged
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.train import Trace, mean_trace
from fusionbench.readers.labels import EncodedRow
from fusionbench.readers.text import IMAGE, Turn
from fusionbench.records.answers import Said
from fusionbench.records.outcomes import Items
from fusionbench.vlm.batch import Batch, Batches, Encode
from fusionbench.vlm.conversations import Cached, Row
from fusionbench.vlm.model import VisionLanguageModel
from fusionbench.vlm.states import ImageStates


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Outcomes of a model on one task, with the answers behind them."""

    outcomes: Float[np.ndarray, " item"]
    items: Items
    answers: tuple[Said, ...]
    trace: Trace
    unknown: int
    """Words of the questions that are not in the vocabulary."""
    scored: ScoredItems | None = None
    """Of a local task: questions and true answers, for its named metrics."""
    measures: Mapping[str, float] | None = None
    """Of a benchmark: its named readings."""
    chance: float | None = None
    """Of a benchmark: the expected score of a guesser on these questions."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a model is asked."""

    model: VisionLanguageModel
    states: ImageStates
    ask: Encode
    """Encodes a row whose answer is asked for."""
    told: Encode
    """Encodes a row with its answer."""
    size: int
    """Most rows at a time."""
    bf16: bool = False
    shuffled: int | None = None
    """A seed: each query is that of another row (`question=shuffled`)."""

    def batches(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """The rows in order, in batches."""
        made = Batches(rows, self.ask, self.states, shuffled=self.shuffled)
        for first in range(0, len(rows), self.size):
            yield made.fetch(range(first, min(first + self.size, len(rows))))

    def autocast(self) -> torch.autocast:
        """bf16 autocast where the budget says so."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)


def evaluate_local(asking: Asking, name: str, bundle: Bundle, split: SplitName, task: Scoring) -> (
    Evaluated
):  # fmt: skip
    """A local task; `Task.judge` compares each answer with the true one."""
    rows = _rows(name, bundle, split)
    limit = max(len(_answer(asking, answer)) for answer in bundle.answers)
    texts, traces, unknown = _said(asking, rows, limit)
    items = bundle.scored(split)
    return Evaluated(
        outcomes=judged(task, texts, items),
        items=Items(names=items.names, groups=items.groups),
        answers=tuple(Said(item=n, text=t) for n, t in zip(items.names, texts, strict=True)),
        trace=mean_trace(traces),
        unknown=unknown,
        scored=items,
    )


def evaluate_benchmark(asking: Asking, benchmark: Benchmark, source: Source) -> Evaluated:
    """A benchmark; its images are opened batch by batch. Raises UserError for broken data."""
    asked: list[Asked] = []
    answers: list[Answer] = []
    traces: list[tuple[int, Mapping[str, Tensor]]] = []
    unknown = 0
    items = stream(benchmark, source)
    while part := list(islice(items, asking.size)):
        texts, found, missing = _said(replace_ask(asking, part), _of_items(part),
                                      benchmark.max_new_tokens)  # fmt: skip
        ranked = _ranked(asking, part) if benchmark.ranks_options else [None] * len(part)
        traces += found
        unknown += missing
        asked += part
        answers += [_answered(*one) for one in zip(part, texts, ranked, strict=True)]
    return score(benchmark, answers, trace=mean_trace(traces), unknown=unknown)


def score(
    benchmark: Benchmark, answers: Sequence[Answer], *, trace: Trace | None = None, unknown: int = 0
) -> Evaluated:
    """Outcomes and readings of stored or fresh answers."""
    outcomes = benchmark.outcomes(answers)
    judged_answers = [
        replace(one, outcome=float(outcome)) for one, outcome in zip(answers, outcomes, strict=True)
    ]
    return Evaluated(
        outcomes=np.array(outcomes, dtype=np.float32),
        items=Items(
            names=tuple(one.name for one in answers), groups=tuple(one.group for one in answers)
        ),
        answers=tuple(Said(item=one.name, text=one.text, ranked=one.ranked) for one in answers),
        trace=trace or {},
        unknown=unknown,
        measures=dict(benchmark.measures(judged_answers)),
        chance=benchmark.guessing(answers),
    )


def replace_ask(asking: Asking, items: Sequence[Item]) -> Asking:
    """Asks with the prompt of each item, while the fusion sees its question alone."""
    questions = {_turn(item): item.question for item in items}

    def ask(row: Row) -> EncodedRow:
        question = Row(name=row.name, images=(), turns=(Turn(questions[row.turns[-1]]),))
        return replace(asking.ask(row), query_ids=asking.ask(question).query_ids)

    return replace(asking, ask=ask)


def _said(
    asking: Asking, rows: Sequence[Row], limit: int
) -> tuple[list[str], list[tuple[int, Mapping[str, Tensor]]], int]:
    """Answers, traces by batch, and the number of unknown words."""
    texts: list[str] = []
    traces: list[tuple[int, Mapping[str, Tensor]]] = []
    unknown = 0
    asking.model.eval()
    for batch in asking.batches(rows):
        with asking.autocast():
            found, fused = asking.model.answer(batch, limit=limit)
        texts += found
        traces.append((len(batch), fused.trace))
        unknown += sum(row.unknown for row in batch.rows)
    return texts, traces, unknown


def _rows(name: str, bundle: Bundle, split: SplitName) -> list[Row]:
    examples = bundle.split(split)
    return [
        Row(
            name=item,
            images=(Cached(task=name, row=int(row)),),
            turns=(Turn(f"{IMAGE}\n{bundle.questions[question]}"),),
        )
        for item, row, question in zip(
            examples.items, examples.rows, examples.questions, strict=True
        )
    ]


def _answer(asking: Asking, text: str) -> tuple[int, ...]:
    """The ids of an answer with its end mark."""
    row = asking.told(Row(name=text, images=(), turns=(Turn("?", text),)))
    return tuple(i for i, labelled in zip(row.ids, row.labelled, strict=True) if labelled)


def _turn(item: Item) -> Turn:
    return Turn(f"{IMAGE}\n" * len(item.images) + item.prompt)


def _of_items(items: Sequence[Item]) -> list[Row]:
    return [Row(name=one.name, images=one.images, turns=(_turn(one),)) for one in items]


def _ranked(asking: Asking, items: Sequence[Item]) -> list[int | None]:
    """Of each item with options, the option with the smallest loss as the answer."""
    found: list[int | None] = []
    for item in items:
        marks = f"{IMAGE}\n" * len(item.images)
        rows = [
            Row(name=item.name, images=item.images, turns=(Turn(marks + item.question, option),))
            for option in item.options
        ]
        if not rows:
            found.append(None)
            continue
        made = Batches(rows, asking.told, asking.states)
        with asking.autocast():
            losses = asking.model.losses(made.fetch(range(len(rows))))
        found.append(int(losses.argmin()))
    return found


def _answered(item: Item, text: str, ranked: int | None) -> Answer:
    return Answer(
        name=item.name, group=item.group, options=item.options, gold=item.gold, text=text,
        ranked=ranked,
    )  # fmt: skip
