"""Text of conversations about images: turns, image marks, and tokenizers with offsets."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fusionbench.api.errors import UserError

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


class HubTokenizer:
    """A fast tokenizer; UserError for one without offsets or without an end-of-text token."""

    unknown: int | None = None

    def __init__(self, tokenizer: Any, *, name: str = "") -> None:
        self.name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{self.name} has no fast tokenizer, so that no token's characters are known",
                "a folder with a tokenizer.json is needed",
            )
        if tokenizer.eos_token_id is None:
            raise UserError(f"{self.name}: the tokenizer has no end-of-text token")
        self.of_hub = tokenizer
        self.end: int = tokenizer.eos_token_id
        self.end_text: str = tokenizer.eos_token
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # A tokenizer adds its first token by itself or not at all; the attribute does not tell.
        with_it, without = tokenizer("a").input_ids, self.encode_offsets("a")[0]
        starts = len(with_it) > len(without) and with_it[0] not in without
        self.begin: int | None = with_it[0] if starts else None

    @classmethod
    def load(cls, folder: Path, *, name: str) -> "HubTokenizer":
        """The tokenizer of a checkpoint's folder; UserError if it cannot be read."""
        from transformers import AutoTokenizer

        from fusionbench.models.encoders.snapshots import LOCAL

        try:
            found = AutoTokenizer.from_pretrained(folder, **LOCAL)
        # Files of somebody else: whatever is wrong with them, the cell has no tokenizer.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{name}: {folder} has no readable tokenizer: {reason}") from error
        return cls(found, name=name)

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
        return len(self.of_hub)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary, the rules and the chat format."""
        return digest([self.of_hub.backend_tokenizer.to_str(), self.of_hub.chat_template])

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and the characters of each."""
        if not text:
            return [], []
        found = self.of_hub(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [(first, stop) for first, stop in found["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and white space at its ends."""
        text: str = self.of_hub.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def chat(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        """The checkpoint's chat format; UserError if it has none."""
        if not self.of_hub.chat_template:
            raise UserError(
                f"{self.name} has no chat format of its own",
                "choose another template: llava15, plain",
            )
        text: str = self.of_hub.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
        return text
