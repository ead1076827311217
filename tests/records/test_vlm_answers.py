"""Stored answers of a benchmark: the same bytes, and enough to be scored again without its data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from vlm_records import pope_asked, pope_texts, write_vlm

from fusionbench.api.benchmarks import Asked
from fusionbench.api.errors import UserError
from fusionbench.records.cell import canonical, checksum
from fusionbench.records.outcomes import Items, Said, answers_of, items_of, pack, unpack
from fusionbench.records.schema import fact_hash
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_benchmark

SAID = [Said(item="a", text="a\n\u2028 \u00e9"), Said(item="b", text="", ranked=2)]
ASKED = Asked(name="a", group="g", options=("x", "y"), gold={"options": 1, "many": ["p", "q"]})


def test_answers_come_back_and_their_file_does_not_depend_on_when_it_was_written():
    assert unpack(pack(SAID)) == SAID and pack(SAID) == pack(unpack(pack(SAID)))


def test_a_damaged_file_of_answers_is_named_with_its_line():
    with pytest.raises(ValueError, match="not a file of answers"):
        unpack(pack(SAID)[:-5])
    import gzip

    with pytest.raises(ValueError, match="line 2 is no answer"):
        unpack(gzip.compress(b'{"item": "a", "text": "b"}\n{"item": "a"}\n'))


def test_items_of_a_local_task_keep_the_hash_that_they_had():
    items = Items(names=("a",), groups=("g",))
    assert items.to_json() == '{"groups":["g"],"names":["a"]}'
    assert Items.from_json(items.to_json()) == items


def test_items_of_a_benchmark_hold_options_and_true_answers():
    items = Items.from_json(items_of([ASKED]).to_json())
    assert items.hash == items_of([ASKED]).hash != replace(items, gold=()).hash
    (answer,) = answers_of(items, [Said(item="a", text="y")], np.array([0.5]))
    assert (answer.name, answer.group, answer.options) == ("a", "g", ("x", "y"))
    assert answer.gold == {"options": 1, "many": ["p", "q"]} and answer.outcome == 0.5


@pytest.mark.parametrize(
    ("items", "said", "message"),
    [
        (Items(names=("a",), groups=("g",)), SAID[:1], "without their true answers"),
        (items_of([ASKED]), SAID[1:], "not those to its questions"),
        (items_of([ASKED]), SAID, "not those to its questions"),
    ],
)
def test_files_that_do_not_fit_are_an_error(items, said, message):
    with pytest.raises(ValueError, match=message):
        answers_of(items, said, np.ones(1))


def test_stored_answers_give_outcomes_and_measures_again(tmp_path):
    store = Store.open(write_vlm(tmp_path / "results", methods=("mema",), tasks=()))
    (record,) = store.records()
    items = store.items(record)
    answers = answers_of(items, store.answers(record), store.outcomes(record))
    assert [one.text for one in answers] == pope_texts("mema", 0, pope_asked())
    benchmark = load_benchmark(read_catalog().benchmarks["pope"])
    assert benchmark.outcomes(answers) == store.outcomes(record).tolist()
    assert benchmark.measures(answers) == record.measures


def test_a_training_with_a_field_of_a_later_version_is_named_and_ignored(tmp_path):
    folder = write_vlm(tmp_path / "results", methods=("mema",), tasks=())
    (file,) = [f for f in (folder / "facts").iterdir() if b'"training"' in f.read_bytes()]
    values = json.loads(file.read_text())
    values["training"]["throw_away"] = True
    later = folder / "facts" / f"{fact_hash(values)}.json"
    later.write_text(canonical(values))
    (cell,) = (folder / "cells").iterdir()
    line = json.loads(cell.read_text().replace(file.stem, later.stem))
    del line["checksum"]
    cell.write_text(json.dumps({**line, "checksum": checksum(line)}))
    store = Store.open(folder)
    assert not store.finished()
    assert "throw_away" in str(store.problems[0]) and cell.stem in store.problems[0].source


def test_a_record_without_answers_says_so(tmp_path):
    store = Store.open(write_vlm(tmp_path / "results", methods=("mema",), tasks=()))
    (record,) = store.records()
    with pytest.raises(UserError, match="kept no answers"):
        store.answers(replace(record, answers=""))
