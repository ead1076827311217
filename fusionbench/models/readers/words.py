"""`words`: a small Llama trained from scratch on the words of the training rows.

The vocabulary holds each word of the texts, apart from four special tokens. A word that follows
another without white space between them is another entry ("##?" in "what?"), so that decoding
returns the text up to the amount of white space.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusionbench.api.errors import UserError
from fusionbench.api.seeding import seed_of
from fusionbench.models.readers.template import SEPARATOR
from fusionbench.models.readers.text import IMAGE, Span, digest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
SPECIAL = (PAD, END, SEPARATOR, UNKNOWN)
_GLUED = "##"
_WORD = re.compile(rf"{PAD}|{END}|{SEPARATOR}|\w+|[^\w\s]")
_HEADS = 4
_CONTEXT = 2048


class WordTokenizer:
    """Words, numbers and single punctuation marks as tokens."""

    begin: int | None = None
    end_text = END

    def __init__(self, words: Iterable[str]) -> None:
        self.words = (*SPECIAL, *sorted(set(words) - set(SPECIAL)))
        self._row = {word: row for row, word in enumerate(self.words)}
        self.pad, self.end = self._row[PAD], self._row[END]
        self.unknown: int | None = self._row[UNKNOWN]

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "WordTokenizer":
        """The vocabulary of texts; image marks are no words. UserError if there is no word."""
        distinct = dict.fromkeys(texts)
        words = {
            word for text in distinct for piece in text.split(IMAGE) for word, _ in _split(piece)
        }
        if not words:
            raise UserError("the training rows have no words: nothing to build a vocabulary from")
        return cls(words)

    def __len__(self) -> int:
        """Entries of the vocabulary, special tokens included."""
        return len(self.words)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary."""
        return digest(["words", 1, self.words])

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and the characters of each."""
        found = list(_split(text))
        return [self._row.get(word, self._row[UNKNOWN]) for word, _ in found], [
            span for _, span in found
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, unknown words as "<unk>"."""
        words = [self.words[i] for i in ids if self.words[i] not in (PAD, END, SEPARATOR)]
        text = "".join(
            word.removeprefix(_GLUED) if word.startswith(_GLUED) else f" {word}" for word in words
        )
        return text.strip()

    def chat(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        """Raise UserError: there is no chat format."""
        raise UserError("the language model words has no chat format", "its template is words")


def _split(text: str) -> Iterable[tuple[str, Span]]:
    """Vocabulary entries of a text with their characters."""
    last = -1
    for found in _WORD.finditer(text):
        word = found.group()
        glued = found.start() == last and word not in SPECIAL
        yield (f"{_GLUED}{word}" if glued else word), found.span()
        last = found.end()


def words_model(
    vocabulary: int, *, seed: int, layers: int = 4, width: int = 128, heads: int = _HEADS
) -> "LlamaForCausalLM":
    """A Llama with initial weights of the stream ("language", "words", seed); on the CPU.

    Matrices start at standard deviation width^(-1/2): at 0.02, transformers' default for widths in
    the thousands, 150 steps at width 128 answer 33 % of six local tasks instead of 43 % (one seed).
    Raises UserError for a width that its heads cannot split.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if width % (2 * heads):
        raise UserError(f"the width of words must be a multiple of {2 * heads}, got {width}")
    # Type checkers do not know the keywords of these classes.
    make: Any = LlamaConfig
    config = make(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=False,
        initializer_range=width**-0.5,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("language", "words", seed))
        made = LlamaForCausalLM(config)
        # Unit normal entries, as the probe track's token embeddings have: a fusion's query is their
        # mean.
        torch.nn.init.normal_(made.model.embed_tokens.weight)
        return made
