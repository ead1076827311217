"""Records on disk: whole or absent, never overwritten, found again quickly."""

import gc
import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_records import ITEMS, outcomes, put, record, spec

from fusionbench.records import verified
from fusionbench.records.history import Request
from fusionbench.records.outcomes import decode, encode
from fusionbench.records.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "out") as store:
        yield store


def again(store):
    return Store.open(store.folder)


def test_a_cell_comes_back_with_its_outcomes_and_items(store):
    written = put(store, spec(), 0.5)
    assert list(again(store).records()) == [written]
    assert np.array_equal(again(store).outcomes(written), outcomes(0.5))
    assert again(store).items(written) == ITEMS
    assert again(store).find(spec().id) == written
    assert list(again(store).finished()) == [spec().id]


def test_a_record_is_never_overwritten(store):
    first = put(store, spec(), 0.5)
    second = put(store, spec(), 0.9, draw=3)
    assert second == first
    assert np.array_equal(store.outcomes(first), outcomes(0.5))
    assert len(list(store.records())) == 1


def test_a_skipped_cell_is_finished_and_a_failed_one_is_not(store):
    store.write(record(spec(seed=1), status="skipped", reason="needs a grid"))
    store.write_failure(record(spec(seed=2), status="failed", reason="first"))
    store.write_failure(record(spec(seed=2), status="failed", reason="second"))
    assert list(store.finished()) == [spec(seed=1).id]
    assert [failure.reason for failure in store.failures()] == ["second"]
    put(store, spec(seed=2), 0.5)
    assert not list(store.failures())
    assert len(list((store.folder / "failures").iterdir())) == 2


def test_ten_failures_later_the_last_one_is_still_the_last(store):
    for number in range(11):
        store.write_failure(record(spec(), status="failed", reason=str(number)))
    assert [failure.reason for failure in store.failures()] == ["10"]


def test_a_tuning_run_is_found_and_does_not_count_as_a_cell(store):
    cell = spec(seed=1000, stage="tune")
    store.write(record(cell, [0.5]))
    assert store.find(cell.id) is not None
    assert not store.finished()


def test_scores_of_zero_and_one_take_a_bit_each_and_others_keep_their_value():
    bits = outcomes(0.4)
    assert len(encode(bits)) == 16 + 5
    assert np.array_equal(decode(encode(bits)), bits)
    partial = np.array([0.25, 1.0, 0.0, 1 / 3], dtype=np.float32)
    assert np.array_equal(decode(encode(partial)), partial)
    assert decode(encode(np.zeros(0))).shape == (0,)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="one finite score per example"):
        encode(np.array([0.5, np.nan]))


def test_every_prefix_of_an_outcome_file_is_refused_as_truncated():
    whole = encode(outcomes(0.5))
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            decode(whole[:length])


def test_items_of_one_task_are_stored_once(store):
    put(store, spec(seed=0), 0.5)
    put(store, spec(seed=1), 0.5)
    assert [file.stem for file in (store.folder / "items").iterdir()] == [ITEMS.hash]


def test_a_second_run_on_the_same_folder_disturbs_nobody(store):
    put(Store.create(store.folder), spec(), 0.5)
    put(store, spec(seed=1), 0.5)
    assert len(store.finished()) == 2


def _write_many(folder, seeds):
    store = Store.open(folder)
    for seed in seeds:
        put(store, spec(seed=seed), 0.5)


def test_workers_write_beside_each_other_and_the_same_cell_once(store):
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_write_many, args=(store.folder, range(start, start + 20)))
        for start in (0, 10)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    fresh = again(store)
    assert len(fresh.finished()) == 30 and not fresh.problems


def test_what_is_known_to_be_whole_is_not_read_again_and_any_change_is(store, monkeypatch):
    put(store, spec(), 0.5)
    reads = []
    examine = verified.examine_file
    monkeypatch.setattr(
        verified, "examine_file", lambda *paths: reads.append(paths) or examine(*paths)
    )
    assert again(store).finished() and not reads
    os.utime(store.folder / "cells" / f"{spec().id}.json")
    assert again(store).finished() and len(reads) == 1
    (store.folder / ".checked").unlink()
    assert again(store).finished() and len(reads) == 2
    (store.folder / ".checked").write_text("torn line\n" + "x" * 40)
    assert again(store).finished() and len(reads) == 3


def test_records_have_equal_parts_in_common_and_no_others(store):
    written = [put(store, spec(seed=seed), 0.5, taps=((7,), (8,))) for seed in range(2)]
    other = put(store, spec(seed=2), 0.5, provenance={"code": {"dirty": 0}})
    same = put(store, spec(seed=3), 0.5, provenance={"code": {"dirty": False}})
    found = {one.spec.seed: one for one in again(store).records()}
    assert [found[seed] for seed in range(4)] == [*written, other, same]
    first, second = found[0], found[1]
    for part in ("provenance", "parameters", "taps", "label"):
        assert getattr(first, part) is getattr(second, part), part
    assert first.spec.budget is second.spec.budget and first.spec.data is second.spec.data
    # Equal for Python, but not the same text in a report.
    assert repr(found[2].provenance) != repr(found[3].provenance)


def test_what_records_have_in_common_is_on_disk_once(store):
    for task in ("digits", "scenes_count"):
        for method in ("last", "mema"):
            for seed in range(5):
                put(store, spec(method, task, seed), 0.5)
    # The condition and the provenance, two methods, two tasks.
    assert len(list((store.folder / "facts").iterdir())) == 6
    assert len(list(again(store).records())) == 20


def test_planning_over_many_finished_cells_is_fast(store):
    for seed in range(200):
        put(store, spec(seed=seed), 0.5)
    gc.collect()
    start = time.process_time()
    assert len(again(store).finished()) == 200
    per_cell = (time.process_time() - start) / 200
    # 90,000 finished cells of 100,000 leave ten seconds: 100 microseconds each.
    assert per_cell < 1e-4


def test_the_history_keeps_each_new_request_once(store):
    run = Request(study={"name": "quick", "seeds": 3}, labels=("mema",), tasks=("digits",))
    store.history.add(run)
    store.history.add(run)
    store.history.add(replace(run, labels=("mema", "last")))
    assert [one.labels for one in again(store).history.requests()] == [("mema",), ("mema", "last")]
    (store.folder / "study.json").write_text("{")
    assert store.history.requests() == []
