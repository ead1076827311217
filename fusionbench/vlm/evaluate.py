"""Scores of a trained model on local tasks and benchmarks, from the text of its answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.benchmarks import Answer, Benchmark, Item, answer_to, stream, with_outcomes
from fusionbench.api.sources import Source
from fusionbench.api.tasks import Scoring, SplitName, judged, require_outcomes
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.train import Trace, mean_trace, require_trace
from fusionbench.models.readers.labels import EncodedRow
from fusionbench.models.readers.text import IMAGE, Turn
from fusionbench.records.outcomes import Items, Said, items_of
from fusionbench.vlm.batch import Batches, Encode, ImageStates, RowBatch, Rows, Strangers
from fusionbench.vlm.model import VisionLanguageModel
from fusionbench.vlm.rows import Cached, TrainingRow


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Outcomes of a model on one task, with the answers behind them."""

    outcomes: Float[np.ndarray, " item"]
    items: Items
    answers: tuple[Said, ...]
    trace: Trace = field(default_factory=dict)
    tokens: int = 0
    """Image tokens that the language model gets for one image; 0 without an image."""
    unknown: int = 0
    """Words of the questions that are not in the vocabulary."""
    left_out: int = 0
    """Questions that the language model's context does not hold, answered with nothing."""
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
    query: str = "question"
    """What the fusion sees of the text, as in `Training`."""
    context: int = 2**31
    """Most positions of the language model."""
    image: int = 0
    """Most positions of one image."""

    def batches(
        self, rows: Sequence[TrainingRow], asked: Sequence[TrainingRow] | None = None
    ) -> Iterator[RowBatch]:
        """The rows in order, in batches of `size`; see `rows_as_batches`."""
        made = self.rows_as_batches(rows, asked)
        for first in range(0, len(rows), self.size):
            yield made.fetch(range(first, min(first + self.size, len(rows))))

    def rows_as_batches(
        self, rows: Sequence[TrainingRow], asked: Sequence[TrainingRow] | None = None
    ) -> Batches:
        """Makes batches of rows; the fusion sees the queries of `asked`.

        None: those of `rows`, shuffled where the setting says so.
        """
        seen: Rows | None = asked
        if asked is None and self.shuffled is not None:
            seen = Strangers(rows, self.shuffled)
        return Batches(rows, self.ask, self.states, asked=seen)

    def room(self, row: TrainingRow, limit: int) -> int:
        """New tokens that the context holds behind a question, at most `limit`; 0 for none."""
        return max(0, min(limit, self.context - self._positions(self.ask(row), row)))

    def holds(self, row: TrainingRow) -> bool:
        """Whether the context holds a question with its answer."""
        return self._positions(self.told(row), row) <= self.context

    def _positions(self, encoded: EncodedRow, row: TrainingRow) -> int:
        return len(encoded.ids) + len(row.images) * self.image

    def autocast(self) -> torch.autocast:
        """bf16 autocast where the budget says so."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)


def evaluate_local(
    asking: Asking, name: str, bundle: Bundle, split: SplitName, task: Scoring
) -> Evaluated:
    """A local task; `Task.judge` compares each answer with the true one."""
    limit = max(len(_answer(asking, answer)) for answer in bundle.answers)
    said = _Said()
    said.ask(asking, _rows(name, bundle, split), limit)
    items = bundle.scored(split)
    return Evaluated(
        outcomes=judged(task, said.texts, items),
        items=Items(names=items.names, groups=items.groups),
        answers=tuple(Said(item=n, text=t) for n, t in zip(items.names, said.texts, strict=True)),
        **said.facts(),
    )


def evaluate_benchmark(asking: Asking, benchmark: Benchmark, source: Source) -> Evaluated:
    """A benchmark; its images are opened batch by batch. Raises UserError for broken data."""
    answers: list[Answer] = []
    said = _Said()
    items, questions = stream(benchmark, source), _questions(asking, benchmark, source)
    while part := list(islice(items, asking.size)):
        asked = list(islice(questions, len(part)))
        said.ask(asking, _of_items(part), benchmark.max_new_tokens, asked)
        ranked = _ranked(asking, part, asked) if benchmark.ranks_options else [None] * len(part)
        texts = said.texts[-len(part) :]
        answers += [answer_to(*one) for one in zip(part, texts, ranked, strict=True)]
    scored = score(benchmark, answers)
    return replace(scored, **said.facts())


def score(benchmark: Benchmark, answers: Sequence[Answer]) -> Evaluated:
    """Outcomes and readings of stored or fresh answers."""
    known, chance = with_outcomes(benchmark, answers), benchmark.guessing(answers)
    outcomes = np.array([one.outcome for one in known], dtype=np.float32)
    return Evaluated(
        outcomes=require_outcomes(outcomes, len(answers), chance),
        items=items_of(answers),
        answers=tuple(Said(item=one.name, text=one.text, ranked=one.ranked) for one in answers),
        measures={
            name: value for name, value in benchmark.measures(known).items() if value is not None
        },
        chance=chance,
    )


@dataclass(kw_only=True)
class _Said:
    """Answers in the order of the questions, and what the batches showed."""

    texts: list[str] = field(default_factory=list)
    traces: list[tuple[int, Mapping[str, Tensor]]] = field(default_factory=list)
    tokens: int = 0
    unknown: int = 0
    left_out: int = 0

    def facts(self) -> dict[str, Any]:
        """The fields of `Evaluated` besides outcomes. Raises FloatingPointError for the trace."""
        return {
            "trace": require_trace(mean_trace(self.traces)), "tokens": self.tokens,
            "unknown": self.unknown, "left_out": self.left_out,
        }  # fmt: skip

    def ask(
        self, asking: Asking, rows: Sequence[TrainingRow], limit: int,
        asked: Sequence[TrainingRow] | None = None,
    ) -> None:  # fmt: skip
        """Add the answers to these rows, at most `limit` tokens each; `asked` as in `batches`.

        An answer ends where the context does; a question that fills it is answered with nothing.
        """
        asking.model.eval()
        made = asking.rows_as_batches(rows, asked)
        rooms = [asking.room(row, limit) for row in rows]
        for part in alike(rooms, asking.size):
            if room := rooms[part.start]:
                self._add(asking, made.fetch(part), room)
            else:
                self.texts += [""] * len(part)
                self.left_out += len(part)

    def _add(self, asking: Asking, batch: RowBatch, limit: int) -> None:
        with asking.autocast():
            found, fused = asking.model.answer(batch, limit=limit)
        if not bool(torch.isfinite(fused.tokens).all()):
            raise FloatingPointError("the tokens of the trained fusion are not finite")
        self.texts += found
        if batch.shows:
            # A trace is a mean over the inputs of the encoder; text alone has none.
            self.traces.append((len(batch.asking), fused.trace))
        self.tokens = max(self.tokens, asking.model.most_tokens(batch, fused))
        self.unknown += sum(row.unknown for row in batch.rows)


def alike(rooms: Sequence[int], size: int) -> Iterator[range]:
    """Neighbours with the same room, at most `size`: so no answer depends on its batch."""
    first = 0
    for at in range(1, len(rooms) + 1):
        if at == len(rooms) or at - first == size or rooms[at] != rooms[first]:
            yield range(first, at)
            first = at


def _questions(asking: Asking, benchmark: Benchmark, source: Source) -> Iterator[TrainingRow]:
    """What the fusion sees with each item: its question without the prompt around it.

    With `query: prompt` the whole prompt. With `question=shuffled` that of another one of all
    items, whatever the size of a batch.
    """
    whole = asking.query == "prompt"
    own = (
        TrainingRow(name=one.name, images=(), turns=(_turn(one) if whole else Turn(one.question),))
        for one in stream(benchmark, source)
    )
    if asking.shuffled is None:
        return own
    others = Strangers(list(own), asking.shuffled)
    return map(others.__getitem__, range(len(others)))


def _rows(name: str, bundle: Bundle, split: SplitName) -> list[TrainingRow]:
    examples = bundle.split(split)
    return [
        TrainingRow(
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
    row = asking.told(TrainingRow(name=text, images=(), turns=(Turn("?", text),)))
    return tuple(i for i, labelled in zip(row.ids, row.labelled, strict=True) if labelled)


def _turn(item: Item) -> Turn:
    return Turn(f"{IMAGE}\n" * len(item.images) + item.prompt)


def _of_items(items: Sequence[Item]) -> list[TrainingRow]:
    return [TrainingRow(name=one.name, images=one.images, turns=(_turn(one),)) for one in items]


def _ranked(
    asking: Asking, items: Sequence[Item], asked: Sequence[TrainingRow]
) -> list[int | None]:
    """Of each item with options, the option with the smallest loss as the answer."""
    found: list[int | None] = []
    for item, question in zip(items, asked, strict=True):
        marks = f"{IMAGE}\n" * len(item.images)
        rows = [
            TrainingRow(
                name=item.name, images=item.images, turns=(Turn(marks + item.question, option),)
            )
            for option in item.options
        ]
        if not rows or not all(map(asking.holds, rows)):
            found.append(None)
            continue
        # `told` encodes no row without an answer; the query does not hold it.
        seen = replace(question, turns=(replace(question.turns[0], answer=item.options[0]),))
        made = Batches(rows, asking.told, asking.states, asked=[seen] * len(rows))
        with asking.autocast():
            losses = asking.model.losses(made.fetch(range(len(rows))))
        if not bool(torch.isfinite(losses).all()):
            raise FloatingPointError(f"the losses of the options of {item.name} are not finite")
        found.append(int(losses.argmin()))
    return found
