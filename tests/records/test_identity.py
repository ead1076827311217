"""What changes a cell's id and what does not."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest

from fusionbench.records.cell import (
    TUNING_SEED,
    Budget,
    CellRecord,
    CellSpec,
    RunOptions,
    Stage,
    Training,
    hashed,
)
from fusionbench.records.schema import Facts, full_text, normal_text
from fusionbench.records.store import Store

RESULTS = Path(__file__).resolve().parent.parent.parent / "results" / "quick"

BUDGET = Budget(steps=10, batch=4, lrs=(1e-3,))
SPEC = CellSpec(
    encoder="nano", weights="w", method="mema", method_version=1, settings={"query": True},
    task="scenes_text", task_version=1, data="d", budget=BUDGET, seed=0,
)  # fmt: skip
OTHER = {bool: True, str: "another", int: 77, float: 0.77}
STAGE = Stage(parts=("digits",), rows="r", count=8, template="words", trained=("fusion",))
TRAINING = Training(language="words", language_weights="l", stages=(STAGE,))


def other(value):
    if isinstance(value, tuple):
        return (*value, 0.5)
    if isinstance(value, dict):
        return {"query": False}
    return TRAINING if value is None else OTHER[type(value)]


@pytest.mark.parametrize("name", [f.name for f in fields(CellSpec) if f.name != "budget"])
def test_every_field_of_a_cell_changes_its_id(name):
    assert replace(SPEC, **{name: other(getattr(SPEC, name))}).id != SPEC.id


@pytest.mark.parametrize("name", [f.name for f in fields(Budget)])
def test_every_field_of_the_budget_changes_the_id(name):
    changed = replace(BUDGET, **{name: other(getattr(BUDGET, name))})
    assert replace(SPEC, budget=changed).id != SPEC.id


@pytest.mark.parametrize("name", [f.name for f in fields(Training) if f.name != "stages"])
def test_every_field_of_a_training_changes_the_id_of_cell_and_model(name):
    one = replace(SPEC, training=TRAINING)
    changed = replace(TRAINING, **{name: other(getattr(TRAINING, name))})
    two = replace(SPEC, training=changed)
    assert one.id != two.id and one.model_id != two.model_id


@pytest.mark.parametrize("name", [f.name for f in fields(Stage)])
def test_every_field_of_a_stage_changes_the_id_of_cell_and_model(name):
    one = replace(SPEC, training=TRAINING)
    changed = replace(STAGE, **{name: other(getattr(STAGE, name))})
    two = replace(SPEC, training=replace(TRAINING, stages=(changed,)))
    assert one.id != two.id and one.model_id != two.model_id
    more = replace(SPEC, training=replace(TRAINING, stages=(STAGE, STAGE)))
    assert more.id != one.id and more.model_id != one.model_id


@pytest.mark.parametrize("name", [f.name for f in fields(CellSpec) if f.name != "budget"])
def test_a_model_is_that_of_all_tasks_of_a_cell_and_of_nothing_else(name):
    one = replace(SPEC, training=TRAINING)
    value = None if name == "training" else other(getattr(one, name))
    two = replace(one, **{name: value})
    assert (two.model_id == one.model_id) is (name in ("task", "task_version", "data"))


def test_a_cell_without_a_training_has_none_in_what_is_hashed_or_written():
    record = CellRecord(spec=SPEC, status="done", score=0.5)
    text, facts = normal_text(record)
    assert "training" not in hashed(SPEC)
    assert "training" not in full_text(record) + text + repr(facts)


def test_a_record_of_the_track_vlm_comes_back_from_both_forms():
    spec = replace(SPEC, track="vlm", training=TRAINING)
    record = CellRecord(
        spec=spec, status="done", score=0.5, model=spec.model_id, measures={"f1": None, "n": 2},
        counts={"unknown words": 3}, seed_scope="suite", answers="a" * 64,
    )  # fmt: skip
    assert Facts().read(full_text(record)) == record
    text, facts = normal_text(record)
    assert Facts(facts.__getitem__).read(text) == record


def test_a_tuning_run_is_scored_on_val_and_a_cell_on_test():
    assert replace(SPEC, stage="tune").split == "val"
    assert SPEC.split == "test"


def test_the_order_of_settings_does_not_change_the_id():
    one = replace(SPEC, settings={"a": 1, "b": 2})
    assert one.id == replace(SPEC, settings={"b": 2, "a": 1}).id


def test_true_and_one_are_different_settings():
    assert replace(SPEC, settings={"a": True}).id != replace(SPEC, settings={"a": 1}).id


def test_the_id_is_the_same_for_ever():
    # A change here orphans every record that anybody has.
    assert SPEC.id == "59ec415f2a30ccdad636"


@dataclass(frozen=True, kw_only=True)
class LaterBudget(Budget):
    """Budget of a version with one option more."""

    throw_away: str = "off"


@dataclass(frozen=True, kw_only=True)
class LaterSpec(CellSpec):
    """Specification of a version with one option more."""

    throw_away: int = 0


def later(spec, **option):
    """The same specification, as a version with a further option in the budget holds it."""
    return replace(spec, budget=LaterBudget(**vars(spec.budget), **option))


SHIPPED = (
    "025231af82e488a76773",
    "1a718a1996b0d8f913c1",
    "34dc66ba1f4faf7ed6a5",
    "4e64c739cfab8f7782b2",
    "67bf4d9d05a4810d2fbd",
    "8183826273397150d9e1",
    "9a6a9f726512e56ea8c4",
    "b446652f51961dbcfb76",
    "ce37b5743983c2e0ff69",
    "e94cc535876a9c17919a",
)


def test_the_ids_of_shipped_records_stay():
    if not RESULTS.exists():
        pytest.skip("the shipped results travel with the checkout only")
    store = Store.open(RESULTS)
    specs = [store.find(cell).spec for cell in SHIPPED]
    assert tuple(spec.id for spec in specs) == SHIPPED
    assert tuple(later(spec).id for spec in specs) == SHIPPED
    assert tuple(LaterSpec(**vars(spec)).id for spec in specs) == SHIPPED


@pytest.mark.thorough
def test_every_shipped_record_has_the_id_that_its_line_names():
    folders = [file.parent for file in RESULTS.parent.rglob("cells.jsonl")]
    if not folders:
        pytest.skip("the shipped results travel with the checkout only")
    for folder in folders:
        store = Store.open(folder)
        paths = store.finished() | store.tuning()
        assert len(paths) > 100 and not store.problems
        records = list(store.records(paths))
        assert [record.id for record in records] == list(paths)
        for spec in (record.spec for record in records):
            assert (spec.training is None) == (spec.track == "probe")


def test_shipped_tuning_runs_have_the_seeds_that_no_cell_has():
    if not RESULTS.exists():
        pytest.skip("the shipped results travel with the checkout only")
    store = Store.open(RESULTS)
    seeds = {one.spec.seed for one in store.records(store.tuning())}
    assert seeds == {TUNING_SEED} == {1000}


def test_a_run_without_options_is_that_of_this_machine():
    assert asdict(RunOptions()) == {
        "out": "results/local", "device": "auto", "workers": 0, "plugins": (), "cache_gib": 20.0,
        "eval_batch": 256, "quiet": False, "compile": "auto", "checkpoint": False, "data_root": "",
        "processes": 0, "micro_batch": 0, "shard": False, "cell_seconds": 0.0,
    }  # fmt: skip


def test_a_record_says_only_what_was_said():
    said = CellRecord(spec=SPEC, status="skipped")
    assert (said.representative, said.reads_answers) == (False, False)


def test_a_later_option_counts_where_it_is_used():
    assert later(SPEC).id == SPEC.id == LaterSpec(**vars(SPEC)).id
    others = {later(SPEC, throw_away="on").id, LaterSpec(**vars(SPEC), throw_away=1).id}
    assert len(others | {SPEC.id}) == 3


def test_a_record_comes_back_from_its_full_and_its_normal_form():
    record = CellRecord(spec=SPEC, status="done", score=0.5, taps=((1,), (2, 3)), loss=(1.0, 0.5))
    assert Facts().read(full_text(record)) == record
    text, facts = normal_text(record)
    assert Facts(facts.__getitem__).read(text) == record


def test_a_record_of_schema_1_lacks_what_came_later():
    record = CellRecord(spec=SPEC, status="done", score=0.5, schema=1)
    assert Facts().read(full_text(record)) == record
    assert '"scores"' not in full_text(record)


def test_a_record_of_a_later_schema_is_refused():
    record = CellRecord(spec=SPEC, status="done", schema=3)
    with pytest.raises(ValueError, match="this version reads"):
        Facts().read(full_text(record))
    text, facts = normal_text(record)
    with pytest.raises(ValueError, match="schema 3"):
        Facts(facts.__getitem__).read(text)


def test_an_edited_record_is_refused():
    text = full_text(CellRecord(spec=SPEC, status="done", score=0.5))
    with pytest.raises(ValueError, match="does not match"):
        Facts().read(text.replace('"seed": 0', '"seed": 1'))
