"""Taps of a paper that coincide on a shallow encoder are noted in the record and in the report."""

import pytest
from registered_methods import CARDS, build
from toy_cells import train_cell

from fusionbench.api.types import StackShape
from fusionbench.registry.plugins import load_method
from fusionbench.report.coverage import warnings


def notes(name: str, layers: int) -> tuple[str, ...]:
    return build(name, StackShape(layers=layers, dim=16, grid=(4, 4), query_dim=8)).notes


@pytest.mark.parametrize(
    ("name", "layers", "count"),
    [
        ("llava_stf", 8, "7 of 8"),
        ("token_packer", 12, "3 of 4"),
        ("mmfuser", 3, "2 of 4"),
        ("repeat_like-mllama", 4, "4 of 6"),
    ],
)
def test_a_method_notes_how_many_of_its_papers_taps_an_encoder_has(name, layers, count):
    (note,) = notes(name, layers)
    assert note == f"{count} taps: the others coincide with them on {layers} blocks"
    assert notes(name, 33) == ()


def test_the_note_stands_in_the_record_and_in_the_report():
    card = CARDS["vip_llava"]
    record, _ = train_cell(load_method(card), steps=1, **card.settings)
    (note,) = record.notes
    assert len(record.taps) < 5 and note.startswith(f"{len(record.taps)} of 5 taps")
    assert any(note in line for line in warnings([record]))


def test_a_method_whose_taps_are_apart_notes_nothing():
    card = CARDS["dense_connector-dci"]
    record, _ = train_cell(load_method(card), steps=1, **card.settings)
    assert record.notes == ()
