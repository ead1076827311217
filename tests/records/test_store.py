"""Records on disk: whole or absent, never overwritten, found again quickly."""

import errno
import multiprocessing
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_records import ITEMS, outcomes, put, record, spec

import fusionbench
from fusionbench import records
from fusionbench.api.errors import UserError
from fusionbench.records import verified
from fusionbench.records.history import Request
from fusionbench.records.outcomes import Said, decode, encode, pack
from fusionbench.records.store import Store
from fusionbench.records.verified import answers_file


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


@pytest.mark.parametrize("wrong", [{"seconds": -1.0}, {"label": 7}, {"family": None}])
def test_a_record_of_impossible_values_is_refused_before_anything_is_written(store, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        put(store, spec(), 0.5, **wrong)
    assert not [file for file in store.folder.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("left", "files"),
    [(encode(outcomes(0.5)), 1), (encode(outcomes(0.9)), 2), (b"torn", 2)],
    ids=["the same", "another run's", "torn"],
)
def test_a_file_of_outcomes_without_a_record_is_not_overwritten(store, left, files):
    there = store.folder / "outcomes" / f"{spec().id}.bin"
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(left)
    written = put(store, spec(), 0.5, draw=0)
    assert np.array_equal(again(store).outcomes(written), outcomes(0.5, 0))
    assert there.read_bytes() == left
    assert len(list(there.parent.iterdir())) == files


@pytest.mark.parametrize(("left", "files"), [("no", 1), ("yes", 2), ("", 2)])
def test_a_file_of_answers_without_a_record_is_not_overwritten(store, left, files):
    said = {text: [Said(item=name, text=text) for name in ITEMS.names] for text in ("no", "yes")}
    there = answers_file(store.folder, spec().id)
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(pack(said[left]) if left else b"torn")
    before = there.read_bytes()
    scores = outcomes(0.5)
    written = store.write(record(spec(), scores), scores, ITEMS, said["no"])
    for fresh in (store, again(store)):
        assert list(fresh.finished(reread=True)) == [written.id] and not fresh.problems
        assert fresh.answers(written) == said["no"]
    assert there.read_bytes() == before and len(list(there.parent.iterdir())) == files


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
    # A file of somebody else's is no failure, whatever its number looks like.
    (store.folder / "failures" / f"{spec().id}.².json").write_text("{}")
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


def test_a_plan_reads_only_the_cells_that_changed_since_they_were_checked(store, monkeypatch):
    for seed in range(20):
        put(store, spec(seed=seed), 0.5)
    assert len(again(store).finished()) == 20
    whole, read = records.store.examined, []
    monkeypatch.setattr(
        records.store, "examined", lambda files, *more: read.append(files) or whole(files, *more)
    )
    assert len(again(store).finished()) == 20
    touched = store.folder / "cells" / f"{spec(seed=3).id}.json"
    touched.write_bytes(touched.read_bytes())
    assert len(again(store).finished()) == 20
    assert read == [[], [touched]]


def test_the_history_keeps_each_new_request_once(store):
    run = Request(study={"name": "quick", "seeds": 3}, labels=("mema",), tasks=("digits",))
    store.history.add(run)
    store.history.add(run)
    store.history.add(replace(run, labels=("mema", "last")))
    assert [one.labels for one in again(store).history.requests()] == [("mema",), ("mema", "last")]
    (store.folder / "study.json").write_text("{")
    assert store.history.requests() == []


# A results folder with foreign, truncated or edited files, and a disk that refuses.

ROOT = Path(fusionbench.__file__).parent.parent
TESTS = str(Path(__file__).parent.parent / "support")


@pytest.fixture
def damage_store(tmp_path):
    with Store.create(tmp_path / "out") as store:
        put(store, spec(seed=0), 0.5)
        put(store, spec(seed=1), 0.5)
        yield store


def damaged_file(store, cell=None):
    return store.folder / "cells" / f"{(cell or spec(seed=0)).id}.json"


def test_finding_a_damaged_record_gives_none_and_names_it(damage_store):
    file = damaged_file(damage_store)
    file.write_text(file.read_text()[:-9])
    fresh = Store.open(damage_store.folder)
    assert fresh.find(spec(seed=0).id) is None
    (problem,) = fresh.problems
    assert problem.source == str(file) and problem.message.startswith("ignored: ")
    assert fresh.find(spec(seed=9).id) is None and len(fresh.problems) == 1


def assert_named_and_ignored(store, path, said):
    fresh = Store.open(store.folder)
    assert list(fresh.finished()) == [spec(seed=1).id]
    assert [problem.source for problem in fresh.problems] == [str(path)]
    assert said in fresh.problems[0].message
    assert path.exists()


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
@pytest.mark.parametrize("kept", [0, 1, 50, -2])
def test_a_truncated_record_does_not_count(damage_store, kept):
    path = damaged_file(damage_store)
    path.write_bytes(path.read_bytes()[:kept])
    assert_named_and_ignored(damage_store, path, "truncated or not JSON")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
@pytest.mark.parametrize(
    ("old", "new"), [('"score": 0.5', '"score": 0.9'), ('"status": "done"', '"status": "skipped"')]
)
def test_an_edited_record_does_not_count(damage_store, old, new):
    path = damaged_file(damage_store)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert_named_and_ignored(damage_store, path, "edited")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
def test_a_record_under_another_name_does_not_count(damage_store):
    path = damaged_file(damage_store)
    other = path.with_name("0" * 20 + ".json")
    path.rename(other)
    assert_named_and_ignored(damage_store, other, "another cell")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
def test_missing_truncated_and_swapped_outcomes_are_seen(damage_store):
    path = damaged_file(damage_store)
    scores = damage_store.folder / "outcomes" / f"{path.stem}.bin"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-1])
    assert_named_and_ignored(damage_store, path, "damaged or edited")
    scores.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_named_and_ignored(damage_store, path, "damaged or edited")
    scores.unlink()
    assert_named_and_ignored(damage_store, path, "outcomes are missing")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "facts are missing"),
        (lambda file: file.write_text(file.read_text().replace("64", "65")), "damaged or edited"),
        (lambda file: file.write_text("{"), "not JSON"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_fact_counts_for_all_its_records_and_is_written_again(
    damage_store, damage, said, cached
):
    put(damage_store, spec(seed=2, budget=replace(spec().budget, batch=8)), 0.5)
    Store.open(damage_store.folder).finished()
    (fact,) = (
        f for f in (damage_store.folder / "facts").iterdir() if '"batch":64' in f.read_text()
    )
    damage(fact)
    if not cached:
        (damage_store.folder / ".checked").unlink()
    fresh = Store.open(damage_store.folder)
    assert list(fresh.finished()) == [spec(seed=2, budget=replace(spec().budget, batch=8)).id]
    assert len(fresh.problems) == 2 and said in str(fresh.problems[0])
    for seed in range(2):
        put(fresh, spec(seed=seed), 0.5)
    again = Store.open(damage_store.folder)
    assert len(again.finished()) == 3 and not again.problems


def test_foreign_files_are_named_left_alone_and_count_for_nothing(damage_store):
    strangers = [damage_store.folder / "cells" / name for name in ("notes.txt", "x.json", "abc")]
    for stranger in strangers:
        stranger.write_text("mine")
    fresh = Store.open(damage_store.folder)
    assert len(fresh.finished()) == 2
    assert {problem.source for problem in fresh.problems} == {str(path) for path in strangers}
    assert all(path.read_text() == "mine" for path in strangers)


def test_a_folder_in_place_of_a_record_is_named(damage_store):
    path = damage_store.folder / "cells" / ("1" * 20 + ".json")
    path.mkdir()
    fresh = Store.open(damage_store.folder)
    assert len(fresh.finished()) == 2
    assert [problem.source for problem in fresh.problems] == [str(path)]


def test_a_damaged_record_is_moved_aside_only_when_its_cell_is_written_again(damage_store):
    path = damaged_file(damage_store)
    path.write_text("torn")
    fresh = Store.open(damage_store.folder)
    fresh.finished()
    assert not (damage_store.folder / "damaged").exists()
    put(fresh, spec(seed=0), 0.5)
    assert [file.read_text() for file in (damage_store.folder / "damaged").iterdir()] == ["torn"]
    assert "moved to damaged/" in str(fresh.problems[-1])
    assert len(Store.open(damage_store.folder).finished()) == 2


def test_the_rest_of_a_kill_is_replaced_and_old_temporary_files_go(damage_store):
    cell = spec(seed=7)
    (damage_store.folder / "outcomes" / f"{cell.id}.bin").write_bytes(b"half of it")
    young, old = (damage_store.folder / "cells" / name for name in (".young.tmp", ".old.tmp"))
    for file in (young, old):
        file.write_text("{")
    os.utime(old, (time.time() - 7200,) * 2)
    damage_store.__exit__()
    with Store.create(damage_store.folder) as fresh:
        assert young.exists() and not old.exists()
        assert len(fresh.finished()) == 2 and not fresh.problems
        put(fresh, cell, 0.5)
    assert len(Store.open(damage_store.folder).finished()) == 3


@pytest.mark.thorough
@pytest.mark.fault("stored data", "a writer killed while it writes", "whole records only")
def test_a_writer_killed_at_any_moment_leaves_only_whole_records(damage_store, injected):
    code = (
        f"import itertools, sys; sys.path.insert(0, {TESTS!r}); from toy_records import *;"
        f"store = Store.open({str(damage_store.folder)!r});"
        "[put(store, spec(seed=i), 0.5) for i in itertools.count(2)]"
    )
    rng = random.Random(0)
    before = 2
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while len(list((damage_store.folder / "cells").glob("*.json"))) < before + 3:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        writer.kill()
        writer.wait()
        (damage_store.folder / ".checked").unlink(missing_ok=True)
        fresh = Store.open(damage_store.folder)
        found = fresh.finished()
        assert not fresh.problems
        for kept in fresh.records():
            assert fresh.outcomes(kept).shape == (len(ITEMS.names),)
        before = len(found)
    assert before > 8
    injected(3)


@pytest.mark.fault(
    "stored data",
    "a disk that refuses a write: space, quota, permission, read-only, file size",
    "one line, no half record",
)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "no permission to write"),
        (errno.EROFS, "no permission to write"),
    ],
)
def test_a_disk_that_refuses_is_said_in_words_and_leaves_no_half_record(
    damage_store, monkeypatch, number, said
):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=said) as caught:
        put(damage_store, spec(seed=9), 0.5)
    assert "--out" in caught.value.hint
    with pytest.raises(UserError, match=said):
        damage_store.write_failure(record(spec(seed=9), status="failed"))
    monkeypatch.undo()
    fresh = Store.open(damage_store.folder)
    assert len(fresh.finished()) == 2 and not fresh.problems
    assert not list(damage_store.folder.glob("*/.*"))


@pytest.mark.fault(
    "stored data",
    "a disk that refuses a write: space, quota, permission, read-only, file size",
    "one line, no half record",
)
def test_a_real_limit_on_file_size_is_reported_like_a_full_disk(damage_store):
    code = (
        f"import resource, sys; sys.path.insert(0, {TESTS!r}); from toy_records import *;"
        "from fusionbench.api.errors import UserError\n"
        f"store = Store.open({str(damage_store.folder)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: put(store, spec(seed=9), 0.5)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert str(damage_store.folder) in done.stdout and done.stdout.count("\n") == 1
    assert len(Store.open(damage_store.folder).finished()) == 2


def test_a_file_system_without_hard_links_still_overwrites_nothing(damage_store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = put(damage_store, spec(seed=9), 0.5)
    assert put(damage_store, spec(seed=9), 0.9) == first
    assert (damage_store.outcomes(first) == outcomes(0.5, 9)).all()


def test_a_file_or_a_missing_folder_is_no_folder_of_results(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for opened in (Store.create, Store.open):
        with pytest.raises(UserError, match="is a file"):
            opened(file)
    with pytest.raises(UserError, match="is not a folder"):
        Store.create(file / "below")
    with pytest.raises(UserError, match="no results in"):
        Store.open(tmp_path / "nothing")
