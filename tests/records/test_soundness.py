"""What is stored counts only if it is what was written: planning, report and merge check alike."""

import json
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
from toy_records import ITEMS, outcomes, put, record, spec

from fusionbench.api.errors import UserError
from fusionbench.records.cell import checksum
from fusionbench.records.history import (
    Design,
    PlannedAblation,
    Request,
    Variant,
    note_design,
    read_designs,
)
from fusionbench.records.merge import merge
from fusionbench.records.outcomes import encode
from fusionbench.records.pairs import Results
from fusionbench.records.schema import fact_hash, full_text
from fusionbench.records.store import Store

REQUEST = Request(study={"name": "toy", "seeds": 2}, labels=("mema",), tasks=("digits",))
DEEP = "[" * 100_000


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "out")
    put(store, spec(seed=0), 0.5)
    put(store, spec(seed=1), 0.4)
    store.history.add(REQUEST)
    return store


def cell_file(store, seed=0):
    return store.folder / "cells" / f"{spec(seed=seed).id}.json"


def scores_file(store, seed=0):
    return store.folder / "outcomes" / f"{spec(seed=seed).id}.bin"


def keeping_times(file, text):
    """Replace the contents of a file as `cp -p` of a damaged copy does: size and time stay."""
    before = file.stat()
    assert len(text) == before.st_size
    file.write_bytes(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def edited(file, **changes):
    """Change values of a record and sign it anew."""
    values = json.loads(file.read_text()) | changes
    del values["checksum"]
    file.write_text(json.dumps({**values, "checksum": checksum(values)}, sort_keys=True))


def assert_left_out(store, *said, seeds=(1,)):
    fresh = Store.open(store.folder)
    for reread in (False, True):
        assert set(fresh.finished(reread=reread)) == {spec(seed=seed).id for seed in seeds}
        text = "\n".join(map(str, fresh.problems))
        assert all(part in text for part in said), text
    return fresh


@pytest.mark.fault(
    "stored data", "items edited or lost", "named, left out; a run writes them again"
)
def test_edited_items_are_no_items_of_any_record_and_a_run_writes_them_again(store):
    (file,) = (store.folder / "items").iterdir()
    values = json.loads(file.read_text())
    keeping_times(file, json.dumps(values | {"groups": ["a"] * 40}, separators=(",", ":"),
                                   sort_keys=True).encode())  # fmt: skip
    fresh = assert_left_out(store, "items were damaged or edited", seeds=())
    with pytest.raises(UserError, match="items were damaged or edited"):
        fresh.items(replace(record(spec()), items=ITEMS.hash))
    put(fresh, spec(seed=0), 0.5)
    again = Store.open(store.folder)
    assert len(again.finished()) == 2 and not again.problems
    assert again.items(next(again.records())) == ITEMS
    assert [one.suffix for one in (store.folder / "damaged").iterdir()] == [".json"] * 2


@pytest.mark.fault(
    "stored data", "items edited or lost", "named, left out; a run writes them again"
)
def test_lost_items_leave_their_records_out_until_a_run_writes_them_again(store):
    (file,) = (store.folder / "items").iterdir()
    file.unlink()
    assert_left_out(store, "items are missing", seeds=())
    put(Store.open(store.folder), spec(seed=0), 0.5)
    assert len(Store.open(store.folder).finished()) == 2


@pytest.mark.fault(
    "stored data", "a record or outcomes changed, size and time kept", "named, left out"
)
@pytest.mark.parametrize("part", ["cells", "outcomes"])
def test_a_digit_that_changes_with_size_and_time_kept_is_seen(store, part):
    file = cell_file(store) if part == "cells" else scores_file(store)
    assert len(Store.open(store.folder).finished()) == 2
    text = file.read_bytes()
    changed = text.replace(b'"score": 0.5', b'"score": 0.9') if part == "cells" else text[:-1]
    keeping_times(file, changed if part == "cells" else changed + bytes([text[-1] ^ 1]))
    assert_left_out(store, "edited")


@pytest.mark.fault(
    "stored data", "a record or outcomes changed, size and time kept", "named, left out"
)
def test_bits_that_rot_under_the_file_system_are_seen_by_whatever_shows_numbers(store):
    assert len(Store.open(store.folder).finished()) == 2
    file, ledger = scores_file(store), store.folder / ".checked"
    before = file.stat()
    text = file.read_bytes()
    file.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    # No program can set the inode's time: the note is edited to what the file has now.
    old, new = (f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for s in (before, file.stat()))
    ledger.write_text(ledger.read_text().replace(old, new))
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 2
    assert [one.spec.seed for one in Results(fresh).records] == [1]
    assert "outcomes were damaged or edited" in str(fresh.problems[0])


@pytest.mark.fault(
    "stored data", "a record signed anew with another seed, score or type", "left out"
)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, "does not match the contents"),
        ({"score": 7.5}, "score is 7.5, not from 0 to 1"),
        ({"score": 0.9}, "the mean of its outcomes 0.5"),
        ({"score": "high"}, "score is 'high', not float | None"),
        ({"score": True}, "score is True"),
        ({"score": None}, "without a score"),
        ({"loss": [0.5, "x"]}, "loss is"),
        ({"outcomes": "../../x"}, "no hash"),
        ({"facts": [["a"]]}, "not the hash of a fact"),
        ({"facts": []}, "not a cell record"),
        ({"status": "finished"}, "status is 'finished'"),
        ({"unknown_field": 1}, "not a cell record"),
        ({"id": 7}, "its id is 7"),
        ({"parameters": {"fusion": float("nan")}}, "parameters is"),
        ({"score": 10**400}, "score is 1000"),
        ({"seconds": 10**400}, "seconds is 1000"),
        ({"schema": 99}, "not a cell record that this version reads"),
        ({"score": 7.5, "scores": {"score": 0.5}}, "score is 7.5, not from 0 to 1"),
    ],
)
def test_a_signed_record_with_other_values_does_not_count(store, changes, said):
    edited(cell_file(store), **changes)
    assert_left_out(store, said)


@pytest.mark.fault(
    "stored data", "a record signed anew with another seed, score or type", "left out"
)
@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"fusion": 10.0, "projector": 20, "reader": 30}},
        {"taps": [["fusion", 10], ["projector", 20], ["reader", 30]]},
        {"taps": [[7.0], [8.0]]},
    ],
)
def test_a_record_that_is_left_out_gives_no_other_its_values(store, changes):
    seeds = sorted(range(2), key=lambda seed: spec(seed=seed).id)
    for seed in seeds:
        edited(cell_file(store, seed), taps=[[7], [8]])
    edited(cell_file(store, seeds[0]), **changes)
    fresh = assert_left_out(store, next(iter(changes)), seeds=(seeds[1],))
    (left,) = fresh.records()
    assert left.parameters == {"fusion": 10, "projector": 20, "reader": 30}
    assert repr(left.taps) == "((7,), (8,))" and repr(left.parameters["fusion"]) == "10"
    merge([store.folder], store.folder.parent / "merged")
    assert list(Store.open(store.folder.parent / "merged").finished()) == [left.id]


@pytest.mark.fault(
    "stored data", "a record signed anew with another seed, score or type", "left out"
)
def test_a_record_of_schema_1_with_another_chance_does_not_count(store):
    first = next(Store.open(store.folder).records())
    file = cell_file(store, first.spec.seed)
    file.write_text(full_text(replace(first, chance=1.0)))
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 1 and "chance is 1, not from 0 to" in str(fresh.problems[0])


@pytest.mark.fault(
    "stored data", "outcomes of another length, or that are no scores", "refused or left out"
)
def test_outcomes_of_another_length_than_the_items_do_not_count(store):
    other = replace(record(spec(seed=7), outcomes(0.5)), items=ITEMS.hash, examples=39)
    scores = outcomes(0.5)[:39]
    other = replace(other, score=float(scores.mean()), outcomes="")
    with pytest.raises(ValueError, match="40 outcomes of 39 examples"):
        store.write(other, outcomes(0.5), ITEMS)
    with pytest.raises(ValueError, match="40 items of 39 examples"):
        store.write(other, scores, ITEMS)
    store.write(other, scores)
    edited(cell_file(store, 7), items=ITEMS.hash)
    assert_left_out(store, "40 items of 39 examples", seeds=(0, 1))


@pytest.mark.fault(
    "stored data",
    "dangling links, loops, pipes, deep JSON in place of a file",
    "named, no hang; all other cells count",
)
@pytest.mark.parametrize("name", ["0", "8", "f"])
def test_a_link_to_nothing_or_to_itself_hides_no_other_file(store, name):
    nothing, loop = (store.folder / "cells" / f"{name * 19}{n}.json" for n in range(2))
    nothing.symlink_to(store.folder / "gone")
    loop.symlink_to(loop.name)
    fresh = assert_left_out(store, "a link to nothing", "a link to itself", seeds=(0, 1))
    assert len(fresh.problems) == 2
    scores_file(store).unlink()
    scores_file(store).symlink_to(store.folder / "gone")
    assert_left_out(store, "outcomes are missing")


@pytest.mark.fault(
    "stored data",
    "dangling links, loops, pipes, deep JSON in place of a file",
    "named, no hang; all other cells count",
)
@pytest.mark.parametrize(
    "text",
    [DEEP, '{"a":' * 100_000, "\0" * 50, '{"checksum": NaN}', "7"],
    ids=["deep list", "deep object", "zeros", "nan", "number"],
)
def test_json_that_is_none_or_too_deep_is_named_wherever_it_is_read(store, text):
    store.write_failure(record(spec(seed=3), status="failed", reason="first"))
    store.write_failure(record(spec(seed=3), status="failed", reason="second"))
    last = store.folder / "failures" / f"{spec(seed=3).id}.2.json"
    for file in (cell_file(store), last, store.folder / "study.json"):
        file.write_text(text)
    (store.folder / "ablations.json").write_text(text)
    fresh = assert_left_out(store, "study.json", "ablations.json", str(cell_file(store)))
    assert [one.reason for one in fresh.failures()] == ["first"]
    assert f"{last}: ignored: the failure of a cell cannot be read" in str(fresh.problems[-1])


@pytest.mark.fault(
    "stored data",
    "dangling links, loops, pipes, deep JSON in place of a file",
    "named, no hang; all other cells count",
)
def test_a_pipe_in_place_of_a_record_is_named_and_nobody_waits_for_it(store):
    cell_file(store).unlink()
    os.mkfifo(cell_file(store))
    assert_left_out(store, "not a regular file")


@pytest.mark.fault(
    "stored data",
    "`study.json` or `ablations.json` edited",
    "named, moved aside, never overwritten",
)
@pytest.mark.parametrize("old", ['"seeds": 2', '"digits"', '"name": "toy"'])
def test_an_edited_request_is_named_and_moved_aside_before_the_next_is_written(store, old):
    file = store.folder / "study.json"
    text = file.read_text()
    assert old in text
    text = text.replace(old, f"{old}0" if old[-1] == "2" else f'{old[:-2]}x"')
    file.write_text(text)
    fresh = Store.open(store.folder)
    assert len(fresh.finished()) == 2 and fresh.history.requests() == []
    assert "study.json: ignored, nothing is known of what was asked: edited" in str(
        fresh.problems[0]
    )
    (moved,) = fresh.history.add(REQUEST)
    assert "moved to" in moved.message
    assert fresh.history.requests() == [REQUEST]
    assert [one.read_text() for one in (store.folder / "damaged").iterdir()] == [text]


def test_a_request_of_an_earlier_version_without_a_checksum_is_read(store):
    file = store.folder / "study.json"
    values = json.loads(file.read_text())
    del values["checksum"]
    file.write_text(json.dumps(values))
    fresh = Store.open(store.folder)
    assert fresh.history.requests() == [REQUEST] and not fresh.history.problems()
    values["runs"][0]["study"]["seeds"] = "two"
    file.write_text(json.dumps(values))
    assert "seeds of a study is 'two', not int" in str(fresh.history.problems()[0])


@pytest.mark.fault(
    "stored data",
    "`study.json` or `ablations.json` edited",
    "named, moved aside, never overwritten",
)
def test_an_edited_design_is_named_and_moved_aside_before_the_next_is_written(store):
    design = Design(kind="one_factor_out", method="mema", variants=(Variant(label="mema"),))
    cells = {"mema": {"digits": (spec().id,)}}
    planned = PlannedAblation(design=design, encoder="nano", budget="b", cells=cells)
    assert note_design(store.folder, planned) == []
    file = store.folder / "ablations.json"
    file.write_text(file.read_text().replace('"nano"', '"nani"'))
    assert read_designs(store.folder) == []
    assert "ablations.json: ignored" in str(store.history.problems()[0])
    (moved,) = note_design(store.folder, planned)
    assert "moved to" in moved.message and read_designs(store.folder) == [planned]


def of_writer(number):
    return outcomes(0.1 + 0.05 * (number % 16), number)


def _write_other(folder, number):
    store = Store.open(folder)
    scores = of_writer(number)
    store.write(record(spec(seed=5), scores), scores, ITEMS)
    os._exit(0 if all("another run of cell" in one.message for one in store.problems) else 3)


@pytest.mark.thorough
@pytest.mark.fault(
    "stored data", "writers of one cell with different outcomes, all at once",
    "none dies; the first counts, the others are kept in `conflicts/` and named",
)  # fmt: skip
@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_writers_of_one_cell_with_other_outcomes_all_live_and_all_results_are_kept(
    store, count, injected
):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_write_other, args=(store.folder, number)) for number in range(count)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * count
    fresh = Store.open(store.folder)
    assert len(fresh.finished(reread=True)) == 3
    assert len(fresh.problems) == count - 1
    assert not (store.folder / "damaged").exists()
    first = fresh.find(spec(seed=5).id)
    assert fresh.outcomes(first).mean() == pytest.approx(first.score)
    files = list((store.folder / "conflicts").iterdir())
    kept = [first.score, *(json.loads(one.read_text())["score"] for one in files)]
    assert sorted(kept) == pytest.approx(sorted(of_writer(n).mean() for n in range(count)))
    assert "the first record counts" in fresh.problems[0].message
    injected(count)


def test_a_writer_with_equal_outcomes_leaves_no_second_result(store):
    put(store, spec(seed=0), 0.5, seconds=77.0)
    assert not Store.open(store.folder).problems
    assert not (store.folder / "conflicts").exists()


@pytest.mark.fault("stored data", "files changed before or after a merge", "named, left out")
def test_merging_reads_and_hashes_whatever_the_notes_say(store, tmp_path):
    assert len(Store.open(store.folder).finished()) == 2
    (store.folder / "outcomes" / f"{spec(seed=0).id}.bin").write_bytes(encode(outcomes(0.9)))
    count, problems = merge([store.folder], tmp_path / "compact")
    assert count == 1 and "outcomes were damaged or edited" in str(problems[0])


@pytest.mark.fault("stored data", "files changed before or after a merge", "named, left out")
@pytest.mark.parametrize("name", ["cells.jsonl", "facts.json", "items.json", "outcomes.npz"])
def test_a_compact_form_with_a_changed_file_says_which(store, tmp_path, name):
    merge([store.folder], tmp_path / "compact")
    file = tmp_path / "compact" / name
    text = file.read_bytes()
    assert not Store.open(tmp_path / "compact").finished() == {}
    lines = text.splitlines(keepends=True)
    keeping_times(file, text[:-9] + b" " + text[-8:]) if name != "cells.jsonl" else (
        file.write_bytes(b"".join(lines[1:]))
    )
    fresh = Store.open(tmp_path / "compact")
    fresh.finished(reread=True)
    assert any(f"{name}: changed since" in str(one) for one in fresh.problems)


@pytest.mark.fault(
    "stored data", "outcomes of another length, or that are no scores", "refused or left out"
)
def test_outcomes_that_are_no_scores_are_refused_before_anything_is_written(store):
    wrong = np.full(40, 1.5, dtype=np.float32)
    with pytest.raises(ValueError, match="outcomes from 1.5 to 1.5"):
        store.write(replace(record(spec(seed=8), wrong), score=1.0), wrong, ITEMS)
    assert not scores_file(store, 8).exists()


def rescored(folder, cell, old="0.5", new="0.9"):
    """Change the score in the line of a cell of the compact form; the checksum stays."""
    file = folder / "cells.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    (at,) = [index for index, line in enumerate(lines) if f'"id": "{cell}"' in line]
    assert f'"score": {old}' in lines[at]
    lines[at] = lines[at].replace(f'"score": {old}', f'"score": {new}')
    file.write_text("".join(lines))


@pytest.fixture
def compact(store, tmp_path):
    merge([store.folder], tmp_path / "compact")
    return Store.open(tmp_path / "compact")


@pytest.mark.fault("stored data", "files changed before or after a merge", "named, left out")
@pytest.mark.parametrize("beside", [False, True])
def test_a_line_edited_after_a_plan_has_read_it_is_seen_by_what_shows_numbers(compact, beside):
    assert len(compact.finished()) == 2
    rescored(compact.folder, spec(seed=0).id)
    if beside:
        # Another file gives all files together another hash: they are examined again.
        (compact.folder / "answers").mkdir()
        (compact.folder / "answers" / "x.jsonl.gz").write_bytes(b"1")
    for store in (compact, Store.open(compact.folder)):
        assert set(store.finished(reread=True)) == {spec(seed=1).id}
        assert any("edited" in str(one) for one in store.problems)
    assert set(Store.open(compact.folder).finished()) == {spec(seed=1).id}


@pytest.mark.fault("stored data", "files changed before or after a merge", "named, left out")
@pytest.mark.parametrize("removed", [False, True])
def test_a_line_edited_or_gone_since_it_was_found_gives_no_record(compact, removed):
    found = compact.finished(reread=True)
    if removed:
        file = compact.folder / "cells.jsonl"
        kept = [line for line in file.read_text().splitlines() if spec(seed=0).id not in line]
        file.write_text("".join(f"{line}\n" for line in kept))
    else:
        rescored(compact.folder, spec(seed=0).id)
    later = Store.open(compact.folder)
    later.finished(reread=True)
    assert [record.spec.seed for record in later.records(found)] == [1]
    assert any("its line is gone or damaged" in str(one) for one in later.problems)
    # Without a look of its own before.
    other = Store.open(compact.folder)
    assert [record.spec.seed for record in other.records(found)] == [1]


def test_an_error_while_files_are_hashed_does_not_count_as_hashed(compact):
    compact.finished()
    rescored(compact.folder, spec(seed=0).id)
    (compact.folder / "answers").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        compact.finished(reread=True)
    (compact.folder / "answers").unlink()
    assert set(compact.finished(reread=True)) == {spec(seed=1).id}


@pytest.mark.fault(
    "stored data", "a record signed anew with another seed, score or type", "left out"
)
@pytest.mark.parametrize(
    ("field", "wrong", "right", "said"),
    [
        ("chance", "0.1", 0.1, "chance is '0.1', not float"),
        ("group", ["fine"], "fine", "group is ['fine'], not str"),
    ],
)
def test_a_fact_of_another_type_is_named_even_where_a_record_overrides_it(
    compact, field, wrong, right, said
):
    folder = compact.folder
    facts = json.loads((folder / "facts.json").read_text())
    old = next(name for name, fact in facts.items() if field in fact)
    new = fact_hash({**facts[old], field: wrong})
    facts[new] = {**facts[old], field: wrong}
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "SHA256SUMS").unlink()
    lines = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    lines[0][field] = right
    for values in lines:
        del values["checksum"]
        values["facts"] = [new if name == old else name for name in values["facts"]]
        values["checksum"] = checksum(values)
    text = "".join(json.dumps(values, sort_keys=True) + "\n" for values in lines)
    (folder / "cells.jsonl").write_text(text)
    fresh = Store.open(folder)
    assert fresh.finished(reread=True) == {} and list(fresh.records()) == []
    assert sum(said in str(one) for one in fresh.problems) == len(lines)


def test_a_budget_among_a_record_s_own_fields_is_no_budget(compact):
    values = json.loads((compact.folder / "cells.jsonl").read_text().splitlines()[0])
    del values["checksum"]
    values["budget"] = {"steps": 1}
    text = json.dumps({**values, "checksum": checksum(values)}, sort_keys=True)
    with pytest.raises(ValueError, match="not Budget"):
        compact.facts.read(text)


def test_a_record_is_handed_out_again_after_the_first_time(compact):
    first = list(compact.records())
    assert [record.spec.seed for record in first] and list(compact.records()) == first
    assert [compact.find(record.id) for record in first] == first
