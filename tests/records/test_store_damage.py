"""A results folder with foreign, truncated or edited files, and a disk that refuses."""

import errno
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_records import ITEMS, outcomes, put, record, spec

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.records.store import Store

ROOT = Path(fusionbench.__file__).parent.parent
TESTS = str(Path(__file__).parent.parent / "support")


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "out") as store:
        put(store, spec(seed=0), 0.5)
        put(store, spec(seed=1), 0.5)
        yield store


def damaged_file(store, cell=None):
    return store.folder / "cells" / f"{(cell or spec(seed=0)).id}.json"


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
def test_a_truncated_record_does_not_count(store, kept):
    path = damaged_file(store)
    path.write_bytes(path.read_bytes()[:kept])
    assert_named_and_ignored(store, path, "truncated or not JSON")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
@pytest.mark.parametrize(
    ("old", "new"), [('"score": 0.5', '"score": 0.9'), ('"status": "done"', '"status": "skipped"')]
)
def test_an_edited_record_does_not_count(store, old, new):
    path = damaged_file(store)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert_named_and_ignored(store, path, "edited")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
def test_a_record_under_another_name_does_not_count(store):
    path = damaged_file(store)
    other = path.with_name("0" * 20 + ".json")
    path.rename(other)
    assert_named_and_ignored(store, other, "another cell")


@pytest.mark.fault(
    "stored data", "records and outcomes truncated, edited, swapped, missing", "named, left out"
)
def test_missing_truncated_and_swapped_outcomes_are_seen(store):
    path = damaged_file(store)
    scores = store.folder / "outcomes" / f"{path.stem}.bin"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-1])
    assert_named_and_ignored(store, path, "damaged or edited")
    scores.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_named_and_ignored(store, path, "damaged or edited")
    scores.unlink()
    assert_named_and_ignored(store, path, "outcomes are missing")


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
    store, damage, said, cached
):
    put(store, spec(seed=2, budget=replace(spec().budget, batch=8)), 0.5)
    Store.open(store.folder).finished()
    (fact,) = (f for f in (store.folder / "facts").iterdir() if '"batch":64' in f.read_text())
    damage(fact)
    if not cached:
        (store.folder / ".checked").unlink()
    fresh = Store.open(store.folder)
    assert list(fresh.finished()) == [spec(seed=2, budget=replace(spec().budget, batch=8)).id]
    assert len(fresh.problems) == 2 and said in str(fresh.problems[0])
    for seed in range(2):
        put(fresh, spec(seed=seed), 0.5)
    again = Store.open(store.folder)
    assert len(again.finished()) == 3 and not again.problems


def test_foreign_files_are_named_left_alone_and_count_for_nothing(store):
    strangers = [store.folder / "cells" / name for name in ("notes.txt", "x.json", "abc")]
    for stranger in strangers:
        stranger.write_text("mine")
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 2
    assert {problem.source for problem in fresh.problems} == {str(path) for path in strangers}
    assert all(path.read_text() == "mine" for path in strangers)


def test_a_folder_in_place_of_a_record_is_named(store):
    path = store.folder / "cells" / ("1" * 20 + ".json")
    path.mkdir()
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 2
    assert [problem.source for problem in fresh.problems] == [str(path)]


def test_a_damaged_record_is_moved_aside_only_when_its_cell_is_written_again(store):
    path = damaged_file(store)
    path.write_text("torn")
    fresh = Store.open(store.folder)
    fresh.finished()
    assert not (store.folder / "damaged").exists()
    put(fresh, spec(seed=0), 0.5)
    assert [file.read_text() for file in (store.folder / "damaged").iterdir()] == ["torn"]
    assert "moved to damaged/" in str(fresh.problems[-1])
    assert len(Store.open(store.folder).finished()) == 2


@pytest.mark.fault("stored data", "a writer killed while it writes", "whole records only")
def test_the_rest_of_a_kill_is_replaced_and_old_temporary_files_go(store):
    cell = spec(seed=7)
    (store.folder / "outcomes" / f"{cell.id}.bin").write_bytes(b"half of it")
    young, old = (store.folder / "cells" / name for name in (".young.tmp", ".old.tmp"))
    for file in (young, old):
        file.write_text("{")
    os.utime(old, (time.time() - 7200,) * 2)
    store.__exit__()
    with Store.create(store.folder) as fresh:
        assert young.exists() and not old.exists()
        assert len(fresh.finished()) == 2 and not fresh.problems
        put(fresh, cell, 0.5)
    assert len(Store.open(store.folder).finished()) == 3


@pytest.mark.fault("stored data", "a writer killed while it writes", "whole records only")
def test_a_writer_killed_at_any_moment_leaves_only_whole_records(store, injected):
    code = (
        f"import itertools, sys; sys.path.insert(0, {TESTS!r}); from toy_records import *;"
        f"store = Store.open({str(store.folder)!r});"
        "[put(store, spec(seed=i), 0.5) for i in itertools.count(2)]"
    )
    rng = random.Random(0)
    before = 2
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while len(list((store.folder / "cells").glob("*.json"))) < before + 3:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        writer.kill()
        writer.wait()
        (store.folder / ".checked").unlink(missing_ok=True)
        fresh = Store.open(store.folder)
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
    store, monkeypatch, number, said
):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=said) as caught:
        put(store, spec(seed=9), 0.5)
    assert "--out" in caught.value.hint
    with pytest.raises(UserError, match=said):
        store.write_failure(record(spec(seed=9), status="failed"))
    monkeypatch.undo()
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 2 and not fresh.problems
    assert not list(store.folder.glob("*/.*"))


@pytest.mark.fault(
    "stored data",
    "a disk that refuses a write: space, quota, permission, read-only, file size",
    "one line, no half record",
)
def test_a_real_limit_on_file_size_is_reported_like_a_full_disk(store):
    code = (
        f"import resource, sys; sys.path.insert(0, {TESTS!r}); from toy_records import *;"
        "from fusionbench.api.errors import UserError\n"
        f"store = Store.open({str(store.folder)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: put(store, spec(seed=9), 0.5)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert str(store.folder) in done.stdout and done.stdout.count("\n") == 1
    assert len(Store.open(store.folder).finished()) == 2


def test_a_file_system_without_hard_links_still_overwrites_nothing(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = put(store, spec(seed=9), 0.5)
    assert put(store, spec(seed=9), 0.9) == first
    assert (store.outcomes(first) == outcomes(0.5, 9)).all()


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
