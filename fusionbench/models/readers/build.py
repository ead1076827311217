"""Build a reader by name. The study sets one for all methods; a method may set its own."""

from fusionbench.api.types import ReaderShape
from fusionbench.models.readers.attentive import AttentiveReader
from fusionbench.models.readers.decoder import DecoderReader, decoder_shape
from fusionbench.models.readers.ridge import RidgeReader

Reader = AttentiveReader | DecoderReader | RidgeReader
_DECODERS = {"decoder": 4, "decoder-6": 6}
"""Layers by name."""
_RIDGE = "ridge"


def reader_shape(name: str, width: int) -> ReaderShape | None:
    """Shape of the reader's layers; None if it has none."""
    layers = _DECODERS.get(name.removeprefix(f"{_RIDGE}-"))
    return None if layers is None else decoder_shape(width, layers)


def build_reader(  # noqa: PLR0913
    name: str,
    in_dim: int,
    *,
    width: int,
    query_dim: int,
    length: int,
    answers: int,
    grid: tuple[int, int] = (1, 1),
    positions: bool = False,
    redrawn: bool = False,
    aligned: bool = False,
) -> Reader:
    """A reader for tokens of width `in_dim`; ValueError for an unknown name.

    `grid`: the encoder's patches; `positions`: whether the attentive reader's tokens get positions;
    `redrawn`: whether the ridge reader draws its random layer from torch's generator;
    `aligned`: the method aligns a summary through the projector.
    """
    shape = reader_shape(name, width)
    if name.split("-")[0] == _RIDGE:
        return RidgeReader(in_dim, grid, width=width, shape=shape, aligned=aligned, redrawn=redrawn)
    if shape is not None:
        return DecoderReader(in_dim, shape, query_dim=query_dim, answers=answers)
    if name != "attentive":
        known = ", ".join(("attentive", _RIDGE, *_DECODERS))
        raise ValueError(f"no reader {name!r}; known: {known}")
    return AttentiveReader(
        in_dim,
        width=width,
        query_dim=query_dim,
        length=length,
        answers=answers,
        grid=grid if positions else None,
    )
