"""A fixed small decoder: what injections and patches come to can only be seen in its answer."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.types import Fused
from fusionbench.readers.decoder import DecoderReader, decoder_shape

READER = decoder_shape(32, 4)
_ANSWERS = 7
_WORDS = 5
_QUERY = 6


class FixedReader(DecoderReader):
    """Asks every image the same question; never trained."""

    question: Tensor

    def __init__(self, in_dim: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(4)
            super().__init__(in_dim, READER, query_dim=_QUERY, length=_WORDS, answers=_ANSWERS)
            self.register_buffer("question", torch.randn(1, _WORDS, _QUERY))
        self.requires_grad_(False)

    def answer_to(self, fused: Fused) -> Float[Tensor, "batch answer"]:
        """Logits on what the method gives, whatever its batch and precision."""
        batch = len(fused.tokens)
        mask = torch.ones(batch, _WORDS, dtype=torch.bool, device=fused.tokens.device)
        return self(fused, self.question.expand(batch, -1, -1), mask)


def reader_for(fused: Fused) -> FixedReader:
    """A reader that fits, in the precision of the tokens."""
    return _reader(fused.tokens.shape[-1], fused.tokens.dtype)


@cache
def _reader(in_dim: int, dtype: torch.dtype) -> FixedReader:
    return FixedReader(in_dim).to(dtype)
