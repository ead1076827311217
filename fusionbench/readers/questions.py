"""Questions as frozen token embeddings: no language model, no training, the same everywhere.

A token's vector is drawn from a stream named after the token, so it depends neither on the task's
vocabulary nor on the order in which questions are read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusionbench.api.seeding import stream

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
        """Embed the questions; ValueError for one without any token."""
        split = [tokenize(question) for question in questions]
        if not all(split):
            raise ValueError(f"a question has no words: {questions[split.index([])]!r}")
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
