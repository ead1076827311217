"""What changes a cell's id and what does not."""

from dataclasses import fields, replace

import pytest

from fusionbench.records.cell import Budget, CellRecord, CellSpec

BUDGET = Budget(steps=10, batch=4, lrs=(1e-3,))
SPEC = CellSpec(
    encoder="nano", weights="w", method="mema", method_version=1, settings={"query": True},
    task="scenes_text", task_version=1, data="d", budget=BUDGET, seed=0,
)  # fmt: skip
OTHER = {str: "another", int: 77, float: 0.77}


def other(value):
    if isinstance(value, tuple):
        return (*value, 0.5)
    if isinstance(value, dict):
        return {"query": False}
    return OTHER[type(value)]


@pytest.mark.parametrize("name", [f.name for f in fields(CellSpec) if f.name != "budget"])
def test_every_field_of_a_cell_changes_its_id(name):
    assert replace(SPEC, **{name: other(getattr(SPEC, name))}).id != SPEC.id


@pytest.mark.parametrize("name", [f.name for f in fields(Budget)])
def test_every_field_of_the_budget_changes_the_id(name):
    changed = replace(BUDGET, **{name: other(getattr(BUDGET, name))})
    assert replace(SPEC, budget=changed).id != SPEC.id


def test_the_order_of_settings_does_not_change_the_id():
    one = replace(SPEC, settings={"a": 1, "b": 2})
    assert one.id == replace(SPEC, settings={"b": 2, "a": 1}).id


def test_true_and_one_are_different_settings():
    assert replace(SPEC, settings={"a": True}).id != replace(SPEC, settings={"a": 1}).id


def test_the_id_is_the_same_for_ever():
    # A change here orphans every record that anybody has.
    assert SPEC.id == "59ec415f2a30ccdad636"


def test_a_record_comes_back_from_json_as_it_was():
    record = CellRecord(spec=SPEC, status="done", score=0.5, taps=((1,), (2, 3)), loss=(1.0, 0.5))
    assert CellRecord.from_json(record.to_json()) == record


def test_an_edited_record_is_refused():
    text = CellRecord(spec=SPEC, status="done", score=0.5).to_json()
    with pytest.raises(ValueError, match="does not fit"):
        CellRecord.from_json(text.replace('"seed": 0', '"seed": 1'))
