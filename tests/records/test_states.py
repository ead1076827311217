"""The state of each cell that a folder's requests ask for."""

import errno
import fcntl
import json
from dataclasses import replace

import pytest
from toy_records import put, record, spec

from fusionbench.records.folder import LOCKS, claimed, claims, exclusive
from fusionbench.records.history import Request
from fusionbench.records.states import STATES, states
from fusionbench.records.store import Store
from fusionbench.study.study import QUICK, as_plain

LABELS, TASKS = ("mema", "last"), ("digits", "scenes")


def request(**changes):
    study = replace(QUICK, seeds=2, **changes)
    return Request(study=as_plain(study), labels=LABELS, tasks=TASKS)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "results") as made:
        made.history.add(request())
        yield made


def by_place(store, of=0):
    return {cell.place: cell for cell in states(store)[of].cells}


def test_done_failed_running_lost_and_left_are_told_apart(store):
    put(store, spec("mema", "digits", 0), 0.5)
    failed = replace(record(spec("mema", "digits", 1)), status="failed", reason="a\nValueError: b")
    store.write_failure(failed)
    with claimed(store.folder, "a", cells=[("last", "digits", 0), ("last", "digits", 1)]) as ours:
        assert ours
        # The note of a process that died has no lock that is held.
        note = store.folder / LOCKS / "b.json"
        note.write_text(json.dumps({"cells": [["last", "scenes", 0]], "where": "host:7"}))
        (store.folder / LOCKS / "b.lock").touch()
        found = by_place(store)
    assert len(found) == 8
    assert found["mema", "digits", 0].state == "done" and found["mema", "digits", 0].id
    assert found["mema", "digits", 1].state == "failed"
    assert found["mema", "digits", 1].why == "ValueError: b"
    assert found["last", "digits", 0].state == found["last", "digits", 1].state == "running"
    assert found["last", "scenes", 0].state == "lost"
    assert found["last", "scenes", 0].why == "host:7"
    assert found["last", "scenes", 1].state == found["mema", "scenes", 0].state == "left"
    assert {cell.state for cell in found.values()} == set(STATES)


def test_a_skipped_cell_is_done_and_a_failed_one_that_runs_again_is_running(store):
    store.write(replace(record(spec("mema", "digits", 0)), status="skipped", reason="no"))
    store.write_failure(replace(record(spec("last", "digits", 0)), status="failed", reason="x"))
    with claimed(store.folder, "a", cells=[("last", "digits", 0)]):
        found = by_place(store)
    assert found["mema", "digits", 0].state == "done"
    assert found["last", "digits", 0].state == "running"


def test_records_of_another_budget_or_encoder_of_another_request_do_not_count(store):
    other = replace(QUICK.budget, steps=99)
    store.history.add(request(budget=other, encoder="dinov2-small"))
    put(store, spec("mema", "digits", 0), 0.5)
    put(store, spec("last", "digits", 0, budget=other, encoder="dinov2-small"), 0.5)
    # A task may bring an encoder and an image size of its own.
    own = replace(QUICK.budget, image_size=224)
    put(store, spec("mema", "scenes", 0, encoder="planted", budget=own), 0.5)
    first, second = by_place(store, 0), by_place(store, 1)
    done = [
        {place for place, cell in found.items() if cell.state == "done"}
        for found in (first, second)
    ]
    assert done == [{("mema", "digits", 0), ("mema", "scenes", 0)}, {("last", "digits", 0)}]


def test_a_claim_names_its_cells_while_it_is_held_and_leaves_nothing(tmp_path):
    cells = (("mema", "digits", 3),)
    with claimed(tmp_path, "a", cells=cells):
        (one,) = claims(tmp_path)
        assert one.cells == cells and one.held and ":" in one.where
        # Looking at a claim takes it from nobody.
        with claimed(tmp_path, "a") as second:
            assert not second
        assert claims(tmp_path)[0].cells == cells
    assert not (tmp_path / LOCKS).exists() and claims(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [["a"]], "where": ""}'])
def test_a_damaged_note_of_a_claim_is_passed_over(tmp_path, text):
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / "a.json").write_text(text)
    assert claims(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_file_system_without_locks_nobody_waits_for_ever(tmp_path, monkeypatch, number):
    def refused(handle, operation):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refused)
    # Two processes may train one cell then; a lock file that a dead host left would stop both.
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a", wait=True) as second:
        assert first and second
    with exclusive(tmp_path), exclusive(tmp_path):
        pass
