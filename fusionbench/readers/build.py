"""Build a reader by name. The study sets one for all methods; a method may set its own."""

from fusionbench.api.types import ReaderShape
from fusionbench.readers.attentive import AttentiveReader
from fusionbench.readers.decoder import DecoderReader, decoder_shape

Reader = AttentiveReader | DecoderReader
_DECODERS = {"decoder": 4, "decoder-6": 6}
"""Layers by name."""


def reader_shape(name: str, width: int) -> ReaderShape | None:
    """Shape of the reader's layers; None if it has none."""
    return decoder_shape(width, _DECODERS[name]) if name in _DECODERS else None


def build_reader(  # noqa: PLR0913
    name: str, in_dim: int, *, width: int, query_dim: int, length: int, answers: int
) -> Reader:
    """A reader for tokens of width `in_dim`; ValueError for an unknown name."""
    shape = reader_shape(name, width)
    if shape is not None:
        return DecoderReader(in_dim, shape, query_dim=query_dim, length=length, answers=answers)
    if name != "attentive":
        known = ", ".join(("attentive", *_DECODERS))
        raise ValueError(f"no reader {name!r}; known: {known}")
    return AttentiveReader(in_dim, width=width, query_dim=query_dim, length=length, answers=answers)
