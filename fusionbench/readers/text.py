"""Text of conversations about images: turns, image marks, and what a tokenizer must offer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

IMAGE = "<image>"
"""Where an image stands in a text. Never a token: the text is cut here."""
Span = tuple[int, int]
"""First character and the character after the last."""


@dataclass(frozen=True)
class Turn:
    """A question, which may hold `IMAGE` marks, and its answer ("" where it is asked for)."""

    question: str
    answer: str = ""


class Tokenizer(Protocol):
    """A tokenizer that returns character offsets."""

    @property
    def pad(self) -> int:
        """Fills rows up."""

    @property
    def end(self) -> int:
        """Ends an answer."""

    @property
    def begin(self) -> int | None:
        """Put in front of every text, or None."""

    @property
    def unknown(self) -> int | None:
        """Stands for words outside the vocabulary; None where every text can be written."""

    @property
    def end_text(self) -> str:
        """The text of `end`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and of the rules that apply it."""

    def __len__(self) -> int:
        """Size of the token table that a language model needs."""

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids without special tokens of the tokenizer's own, and their characters."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""

    def chat(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        """The tokenizer's own chat format, with the head of an answer if `ask`.

        Raises UserError if it has none.
        """


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text between image marks, each piece with the place of its first character."""
    start = 0
    for piece in text.split(IMAGE):
        yield start, piece
        start += len(piece) + len(IMAGE)


def without_images(text: str) -> str:
    """The text without image marks and without white space at its ends."""
    return text.replace(IMAGE, "").strip()


def images_in(turns: Sequence[Turn]) -> int:
    """Number of image marks in the questions."""
    return sum(turn.question.count(IMAGE) for turn in turns)


def digest(facts: object) -> str:
    """SHA-256 of plain data."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
