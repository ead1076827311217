"""Examples, questions and hidden states of a task on the device, shared by its cells.

Questions are frozen token embeddings: no language model, no training. A token's vector is drawn
from a stream named after the token, so it depends neither on the task's vocabulary nor on the order
in which questions are read.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Tap
from fusionbench.api.seeding import stream
from fusionbench.api.tasks import Scoring
from fusionbench.api.types import StackShape
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.stepping import States
from fusionbench.models.encoders import features
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.models.readers.ridge import question_kernel
from fusionbench.records.cell import Budget

_TOKEN = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")
_PADDING = -1


def tokenize(text: str) -> list[str]:
    """Lower-case words, numbers and single punctuation marks."""
    return _TOKEN.findall(text.lower())


def token_vector(token: str, dim: int) -> Float[np.ndarray, " dim"]:
    """The frozen embedding of one token: independent standard normal entries."""
    return stream("token", token, dim).standard_normal(dim).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class QuestionTable:
    """The distinct questions of a task, ready to be looked up by row."""

    tokens: Float[Tensor, "question length dim"]
    """Zero where a question is shorter than the longest."""
    mask: Bool[Tensor, "question length"]

    @classmethod
    def build(cls, questions: Sequence[str], dim: int) -> "QuestionTable":
        """Embed the questions, or answers; ValueError for one without any token."""
        split = [tokenize(question) for question in questions]
        if not all(split):
            raise ValueError(f"a text has no words: {questions[split.index([])]!r}")
        words = sorted({token for tokens in split for token in tokens})
        table = np.stack([token_vector(word, dim) for word in words])
        ids = _padded(split, {word: row for row, word in enumerate(words)})
        mask = ids != _PADDING
        vectors = table[np.where(mask, ids, 0)] * mask[..., None]
        return cls(tokens=torch.from_numpy(vectors), mask=torch.from_numpy(mask))

    def to(self, device: torch.device) -> "QuestionTable":
        """The same table on another device."""
        return QuestionTable(tokens=self.tokens.to(device), mask=self.mask.to(device))

    def mean(self) -> Float[Tensor, "question dim"]:
        """The query a fusion sees: the mean of the question's token embeddings."""
        total = reduce(self.tokens, "question length dim -> question dim", "sum")
        return total / self.mask.sum(dim=1, keepdim=True)


def _padded(split: Sequence[Sequence[str]], row: dict[str, int]) -> Int[np.ndarray, "question l"]:
    ids = np.full((len(split), max(map(len, split))), _PADDING, dtype=np.int64)
    for number, tokens in enumerate(split):
        ids[number, : len(tokens)] = [row[token] for token in tokens]
    return ids


# All hidden states of a task may take this share of the memory that was free before the first one;
# the rest stays mapped from disk.
_GPU_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples on the device: image rows, question rows, answers."""

    rows: Int[Tensor, " example"]
    questions: Int[Tensor, " example"]
    answers: Int[Tensor, " example"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)

    def pick(self, index: Int[Tensor, " picked"]) -> "Batch":
        """The examples at these positions, in this order."""
        return Batch(
            rows=self.rows[index], questions=self.questions[index], answers=self.answers[index]
        )


@dataclass(kw_only=True)
class Materials:
    """One task, one encoder, one budget."""

    name: str
    task: Scoring
    bundle: Bundle
    budget: Budget
    shape: StackShape
    """The encoder's stack, with the query's width filled in."""
    key: FeatureKey
    device: torch.device
    encoder: Encoder | None = None
    """Only where a method of this task writes into the encoder."""
    compiled: str = ""
    """Mode of `torch.compile` for whole steps of a pass; empty: no compilation."""
    splits: Mapping[str, Batch] = field(init=False)
    questions: QuestionTable = field(init=False)
    queries: Float[Tensor, "question query_dim"] = field(init=False)
    """What a fusion sees of each question."""
    question_kernel: Float[Tensor, "question question"] = field(init=False)
    """Of the ridge reader."""
    shuffled_questions: Int[Tensor, " image"] = field(init=False)
    """Row of a random training question for each image (control `question=shuffled`)."""
    answers: Float[Tensor, "answer width"] = field(init=False)
    """Frozen embeddings of the answers, in the reader's width."""
    _leak: QuestionTable = field(init=False)
    _taps: dict[Tap, Float[Tensor, "image token dim"]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Move everything small to the device."""
        self.splits = {name: self._batch(name) for name in ("train", "val", "test")}
        table = QuestionTable.build(self.bundle.questions, self.budget.query_dim)
        self.questions = table.to(self.device)
        self.queries = self.questions.mean()
        self.question_kernel = question_kernel(self.queries)
        asked = self.bundle.train.questions
        drawn = stream(self.name, "strangers").integers(0, len(asked), size=self.bundle.count)
        self.shuffled_questions = torch.from_numpy(asked[drawn]).to(self.device)
        answers = QuestionTable.build(self.bundle.answers, self.budget.reader_width)
        self.answers = answers.mean().to(self.device)
        self._leak = QuestionTable.build(self.bundle.answers, self.budget.query_dim).to(self.device)

    def leaky_queries(self, batch: Batch) -> Float[Tensor, "batch query_dim"]:
        """The mean over question and answer tokens, for methods that read answers in training."""
        asked, told = self.questions, self._leak
        total = asked.tokens[batch.questions].sum(dim=1) + told.tokens[batch.answers].sum(dim=1)
        count = asked.mask[batch.questions].sum(dim=1) + told.mask[batch.answers].sum(dim=1)
        return total / count[:, None]

    def tensors(self) -> list[Tensor]:
        """All tensors that cells share; hidden states come last, as they are read."""
        tables = (self.questions, self._leak)
        return [
            *(one for table in tables for one in (table.tokens, table.mask)),
            self.queries,
            self.question_kernel,
            self.shuffled_questions,
            self.answers,
            *(one for b in self.splits.values() for one in (b.rows, b.questions, b.answers)),
            *self._taps.values(),
        ]

    def states(self, rows: Int[Tensor, " example"]) -> States:
        """The hidden states of these images, by tap."""

        def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
            return torch.stack([self._rows(tap, rows) for tap in taps])

        return gather

    def resident(self, taps: Sequence[Tap]) -> bool:
        """True if these hidden states are on the device; others are mapped from disk."""
        return all(self._stored(tap).device.type == self.device.type for tap in taps)

    def mapped(
        self, taps: Sequence[Tap], rows: Int[Tensor, " example"]
    ) -> Float[Tensor, "tap batch token dim"]:
        """The hidden states of these images from disk, in the stored type and not on the device."""
        return torch.stack([self._stored(tap).index_select(0, rows) for tap in taps])

    def _rows(self, tap: Tap, rows: Int[Tensor, " example"]) -> Float[Tensor, "batch token dim"]:
        stored = self._stored(tap)
        # In the type they are stored in: half the bytes for float16.
        picked = stored.index_select(0, rows.to(stored.device))
        return picked.to(self.device).to(torch.float32)

    def _stored(self, tap: Tap) -> Float[Tensor, "image token dim"]:
        if tap not in self._taps:
            self._taps[tap] = self._place(features.read(self.key, tap))
        return self._taps[tap]

    def _place(self, stored: Float[Tensor, "image token dim"]) -> Float[Tensor, "image token dim"]:
        if self.device.type != "cuda":
            return stored
        free, _ = torch.cuda.mem_get_info(self.device)
        there = (one for one in self._taps.values() if one.device.type == self.device.type)
        placed = sum(one.nbytes for one in there)
        fits = placed + stored.nbytes < _GPU_SHARE * (free + placed)
        return stored.to(self.device) if fits else stored

    def _batch(self, name: str) -> Batch:
        examples = {"train": self.bundle.train, "val": self.bundle.val, "test": self.bundle.test}[
            name
        ]
        columns = (examples.rows, examples.questions, examples.answers)
        rows, questions, answers = (torch.from_numpy(np.array(column)) for column in columns)
        return Batch(
            rows=rows.to(self.device),
            questions=questions.to(self.device),
            answers=answers.to(self.device),
        )


# Hidden states of the next steps, read while the device is at work on this one.
#
# What does not fit on a GPU stays mapped from disk: a thread gathers the rows of the next batches
# into pinned memory, from which the copy to the device waits for nobody.


_AHEAD = 3
"""Most batches in flight: one is copied, one is ready, one is read."""
Hidden = Float[Tensor, "tap example token dim"]


def prefetch(
    materials: Materials, taps: Sequence[Tap], rows: Sequence[Int[Tensor, " example"]]
) -> Iterator[Hidden]:
    """The hidden states of each step's images, in order, on the device in float32."""
    # Taps are placed one by one: some may have found room on the device.
    far = [tap for tap in taps if not materials.resident((tap,))]
    if not far:
        for picked in rows:
            yield materials.states(picked)(tuple(taps))
        return
    for picked, found in zip(rows, _read(materials, far, rows), strict=True):
        here = dict(zip(far, found, strict=True))
        near = [tap for tap in taps if tap not in here]
        states = materials.states(picked)(tuple(near)) if near else ()
        here |= dict(zip(near, states, strict=True))
        yield torch.stack([here[tap] for tap in taps])


def _read(
    materials: Materials, taps: Sequence[Tap], rows: Sequence[Int[Tensor, " example"]]
) -> Iterator[Hidden]:
    """Hidden states mapped from disk, read a few batches before they are used."""
    pin = materials.device.type == "cuda"

    def gather(picked: Int[Tensor, " example"]) -> Hidden:
        found = materials.mapped(taps, picked)
        return found.pin_memory() if pin else found

    waiting: deque[Future[Hidden]] = deque()
    # On the host at once: a thread that waits for the device would wait for the step before.
    left = [picked.cpu() for picked in rows]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as reader:
        for picked in left:
            waiting.append(reader.submit(gather, picked))
            if len(waiting) == _AHEAD:
                yield _moved(waiting.popleft().result(), materials.device)
        while waiting:
            yield _moved(waiting.popleft().result(), materials.device)


def _moved(found: Hidden, device: torch.device) -> Hidden:
    return found.to(device, non_blocking=True).to(torch.float32)
