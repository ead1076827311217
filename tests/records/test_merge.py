"""The compact form: joined from folders, read like a live one, the same records and reports."""

import errno
import gzip
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_records import ITEMS, outcomes, put, record, spec
from vlm_records import pope_asked, pope_texts, write_vlm

from fusionbench.api.benchmarks import Asked
from fusionbench.api.errors import UserError
from fusionbench.records import archive, cost
from fusionbench.records.cell import canonical, checksum
from fusionbench.records.cost import Conditions, CostRecord
from fusionbench.records.history import Request
from fusionbench.records.merge import merge
from fusionbench.records.outcomes import Items, Said, answers_of, items_of, pack, unpack
from fusionbench.records.schema import fact_hash, full_text
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_benchmark
from fusionbench.report.build import write_report

RESULTS = Path(__file__).resolve().parent.parent.parent / "results" / "quick"
METHODS, TASKS, SEEDS = ("penultimate", "last", "mema"), ("digits", "scenes_count"), 4
FAILED = spec("mema", "easy_vqa", 0)


def write(folder: Path, seeds: range, *, schema: int = 2) -> Path:
    """Some seeds of a small study, with tuning runs, profiles, a skipped and a failed cell."""
    with Store.create(folder) as store:
        for number, method in enumerate(METHODS):
            for task in TASKS:
                for seed in seeds:
                    share = 0.3 + 0.1 * number
                    put(store, spec(method, task, seed), share, 10 * seed + number, schema=schema)
            tuned = spec(method, "digits", 1000, stage="tune")
            store.write(record(tuned, [0.5], schema=schema))
            cost.write(folder, profile(method))
        skipped = spec("mema", "textile", 0)
        store.write(record(skipped, status="skipped", reason="needs a grid", schema=schema))
        store.write_failure(record(FAILED, status="failed", reason="first", schema=schema))
        store.write_failure(record(FAILED, status="failed", reason="second", schema=schema))
        study = {"name": "toy", "baseline": "penultimate", "seeds": SEEDS}
        store.history.add(Request(study=study, labels=METHODS, tasks=TASKS))
    return folder


def profile(method: str) -> CostRecord:
    conditions = Conditions(
        method=method, method_version=1, settings={}, encoder="nano", weights="w", image_size=64,
        width=64, mode="inference", batch=1, dtype="float32", device="cpu",
    )  # fmt: skip
    return CostRecord(conditions=conditions, label=method, layers=8, dim=96, tokens=17,
                      in_encoder=False, parameters={"fusion": 1}, tokens_out=16)  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (".checked", ".inputs", ".lock")
    }


def problems(folder: Path) -> list[str]:
    store = Store.open(folder)
    store.finished(reread=True)
    return [str(one) for one in store.problems]


def contents(folder: Path) -> dict[str, object]:
    """All that a store gives, record by record."""
    store = Store.open(folder)
    finished, tuning = store.finished(), store.tuning()
    found: dict[str, object] = {one.id: full_text(one) for one in store.records(finished)}
    found |= {f"tuning {one.id}": full_text(one) for one in store.records(tuning)}
    for one in store.records(finished):
        if one.outcomes:
            found[f"outcomes {one.id}"] = store.outcomes(one).tolist()
            found[f"items {one.id}"] = store.items(one)
    found["failures"] = [full_text(one) for one in store.failures()]
    found["runs"] = store.history.requests()
    found["profiles"] = list(cost.read(folder))
    assert not store.problems
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["schema 1", "schema 2"])
def live(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("live") / "out", range(SEEDS), schema=request.param)


@pytest.fixture
def compact(live, tmp_path):
    merge([live], tmp_path / "compact")
    return tmp_path / "compact"


def test_every_record_of_the_compact_form_is_that_of_the_live_form(live, compact):
    assert contents(compact) == contents(live)
    assert not (compact / "cells").exists() and len(list(compact.iterdir())) <= 9


@pytest.mark.thorough
def test_a_report_has_the_same_bytes_from_both_forms(live, compact, tmp_path, monkeypatch, request):
    if request.node.callspec.params["live"] == 1:
        # Figures take most of the time, and those of schema 2 are compared.
        monkeypatch.setattr("fusionbench.report.build.write_figures", lambda *_: [])
    write_report(live, tmp_path / "one")
    write_report(compact, tmp_path / "two")
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert [name for name in one | two if one.get(name) != two.get(name)] == []


def test_merging_two_halves_gives_the_bytes_of_the_whole(live, compact, tmp_path):
    (schema,) = {one.schema for one in Store.open(live).records()}
    halves = [write(tmp_path / str(n), range(n, SEEDS, 2), schema=schema) for n in range(2)]
    merge(halves, tmp_path / "one")
    merge(halves[::-1], tmp_path / "two")
    merge([tmp_path / "one", live], tmp_path / "three")
    assert files(compact) == files(tmp_path / "one") == files(tmp_path / "two")
    assert files(compact) == files(tmp_path / "three")


def test_a_run_into_the_compact_form_adds_live_cells_to_it(live, compact, tmp_path):
    before = files(compact)
    with Store.create(compact) as store:
        known = next(Store.open(live).records())
        assert store.write(replace(known, score=0.9), outcomes(0.9), ITEMS) == known
        new = put(store, spec("last", "digits", SEEDS), 0.6)
        again = put(store, FAILED, 0.6)
    fresh = Store.open(compact)
    assert {new.id, again.id, known.id} < set(fresh.finished())
    assert fresh.find(new.id) == new and fresh.find(known.id) == known
    assert np.array_equal(fresh.outcomes(new), outcomes(0.6, SEEDS))
    assert not list(fresh.failures())
    # The other result of a cell that was known is kept beside its record, and named.
    (other,) = fresh.problems
    assert known.id in other.message and "score 0.9; the first record counts" in other.message
    after = files(compact)
    assert {name: after[name] for name in before} == before
    assert merge([compact], tmp_path / "again")[0] == len(fresh.finished()) + len(METHODS)


def test_damaged_outcomes_of_the_compact_form_cost_no_live_cell(compact, tmp_path):
    folder = shutil.copytree(compact, tmp_path / "again")
    (folder / "outcomes.npz").write_bytes(b"no archive")
    with Store.create(folder) as store:
        live = put(store, spec("last", "digits", SEEDS), 0.6)
    assert np.array_equal(Store.open(folder).outcomes(live), outcomes(0.6, SEEDS))


def test_outcomes_of_an_earlier_run_are_not_those_of_the_record(compact, tmp_path):
    folder = shutil.copytree(compact, tmp_path / "again")
    own = spec("mema", "digits", 0)
    # By another version of the code: the cell was run again, and its outcomes got lost.
    with Store.create(folder) as store:
        (folder / "cells").mkdir(exist_ok=True)
        other = put(Store.create(tmp_path / "other"), own, 0.9, 99)
        text = (tmp_path / "other" / "cells" / f"{own.id}.json").read_text()
        (folder / "cells" / f"{own.id}.json").write_text(text)
    with pytest.raises(UserError, match="damaged or edited"):
        store.outcomes(other)


def test_a_cell_with_other_contents_is_refused_and_both_are_shown(live, tmp_path):
    other = tmp_path / "other"
    with Store.create(other) as store:
        put(store, spec("mema", "digits", 0), 0.9)
    with pytest.raises(UserError, match=r"cell .* \(mema on digits, seed 0\) differs") as caught:
        merge([live, other], tmp_path / "out")
    assert f"{live}: score=0.5" in caught.value.message
    assert f"{other}: score=0.89" in caught.value.message
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_time_machine_and_facts_of_later_versions_do_not_make_two_contents(tmp_path):
    for number in range(2):
        later = {"distinct": 2 * number, "tokens": 16 * number}
        with Store.create(tmp_path / str(number)) as store:
            put(store, spec(), 0.5, seconds=1.0 + number, provenance={"hardware": number}, **later)
    for name, order in (("one", "01"), ("two", "10")):
        assert merge([tmp_path / each for each in order], tmp_path / name)[0] == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")
    (kept,) = Store.open(tmp_path / "one").records()
    assert (kept.distinct, kept.tokens) == (2, 16)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("cells.jsonl", b'"score": 0.5', b'"score": 0.9', "edited"),
        ("cells.jsonl", b'"seed": 3, "status": "done"}\n', b'"se', "truncated or not JSON"),
        ("facts.json", b'"chance":0.1', b'"chance":0.2', "facts were damaged"),
        ("outcomes.npz", b"PK", b"QK", "outcomes.npz is damaged"),
    ],
)
def test_damage_to_the_compact_form_is_named_and_costs_only_the_cells_it_hits(
    compact, name, old, new, said
):
    assert Store.open(compact).finished()
    file = compact / name
    file.write_bytes(file.read_bytes().replace(old, new, 1 if name == "cells.jsonl" else -1))
    fresh = Store.open(compact)
    found = fresh.finished()
    assert said in str(fresh.problems[0]) and "cells.jsonl:" in fresh.problems[0].source
    # A line, and the one after it where the end of a line is lost.
    assert name != "cells.jsonl" or len(found) + len(fresh.tuning()) >= 26
    list(fresh.records(found))


@pytest.mark.parametrize("name", ["outcomes.npz", "answers.npz"])
def test_a_damaged_header_of_the_bytes_costs_no_cell_and_is_named(tmp_path, name):
    live = write_vlm(tmp_path / "live", methods=("mema", "last"), tasks=())
    merge([live], tmp_path / "out")
    file = tmp_path / "out" / name
    whole = file.read_bytes()
    at = whole.rindex(b"'shape': (")
    # What numpy's parser of headers answers with an error of another kind.
    file.write_bytes(whole[:at] + whole[at:].replace(b"), }", b"!, }", 1))
    store = Store.open(tmp_path / "out")
    assert sorted(store.finished()) == sorted(Store.open(live).finished())
    (said,) = map(str, store.problems)
    assert f"{name}: changed since it was written" in said


@pytest.mark.parametrize("name", ["outcomes.npz", "answers.npz"])
def test_a_damaged_byte_costs_one_cell(tmp_path, name):
    live = write_vlm(tmp_path / "live", methods=("mema", "last"), tasks=())
    merge([live], tmp_path / "out")
    file = tmp_path / "out" / name
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as members:
        data = members.read("data.npy")
    # The last byte belongs to the last cell, as lines and files are sorted by id.
    whole[whole.index(data) + len(data) - 1] ^= 1
    file.write_bytes(whole)
    kept = sorted(Store.open(live).finished())
    store = Store.open(tmp_path / "out")
    assert len(kept) == 2 and sorted(store.finished()) == kept[:1]
    hit, changed = map(str, store.problems)
    assert f"cells.jsonl:2: ignored: its {name.removesuffix('.npz')} were damaged" in hit
    assert f"{name}: changed since it was written" in changed


def test_a_damaged_archive_is_read_once(compact, monkeypatch):
    (compact / "outcomes.npz").write_bytes(b"no archive")
    read = []
    content = archive.content
    monkeypatch.setattr(archive, "content", lambda file, *a: read.append(file) or content(file, *a))
    assert len(Store.open(compact).finished()) == 1  # a skipped cell, which has no outcomes
    assert [file.name for file in read].count("outcomes.npz") == 1


def test_outcomes_that_would_unpack_to_any_size_are_not_unpacked(compact):
    file = compact / "outcomes.npz"
    with zipfile.ZipFile(file) as members:
        held = {one.filename: members.read(one) for one in members.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        for name, value in held.items():
            members.writestr(name, value + bytes(1 << 24 if name == "data.npy" else 0))
    assert file.stat().st_size < 1 << 20
    fresh = Store.open(compact)
    fresh.finished()
    assert "is compressed, and none is when written" in str(fresh.problems[0])


def test_nothing_is_written_over_and_nothing_half_is_left(live, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(UserError, match="exists already"):
            merge([live], taken)
    Store.create(tmp_path / "empty").__exit__()
    with pytest.raises(UserError, match="no records"):
        merge([tmp_path / "empty"], tmp_path / "out")

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="no space left"):
        merge([live], tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "full"]


def test_the_command_names_what_it_wrote(live, tmp_path, call):
    code, said, _ = call("merge", live, "-o", tmp_path / "out")
    assert code == 0 and f"28 cells and tuning runs from 1 folder: {tmp_path / 'out'}" in said
    assert call("merge", live, "-o", tmp_path / "out")[0] == 2


@pytest.mark.slow
def test_the_shipped_records_come_back_with_their_ids_and_checksums(tmp_path):
    if not RESULTS.exists():
        pytest.skip("the shipped results travel with the checkout only")
    shutil.copytree(RESULTS, tmp_path / "copy", ignore=shutil.ignore_patterns("report", ".*"))
    merge([tmp_path / "copy"], tmp_path / "compact")
    first, second = Store.open(tmp_path / "copy"), Store.open(tmp_path / "compact")
    for paths in ("finished", "tuning"):
        here, there = getattr(first, paths)(), getattr(second, paths)()
        one = [full_text(record) for record in first.records(here)]
        assert one == [full_text(record) for record in second.records(there)]
    for one in [one for one in first.records() if one.outcomes][::50]:
        wanted = (one.id, one.outcomes)
        assert first.outcome_bytes(*wanted) == second.outcome_bytes(*wanted)


# Stored answers of a benchmark: the same bytes, and enough to be scored again without its data.

SAID = [Said(item="a", text="a\n\u2028 \u00e9"), Said(item="b", text="", ranked=2)]
ASKED = Asked(name="a", group="g", options=("x", "y"), gold={"options": 1, "many": ["p", "q"]})


def test_answers_come_back_and_their_file_does_not_depend_on_when_it_was_written():
    assert unpack(pack(SAID)) == SAID and pack(SAID) == pack(unpack(pack(SAID)))


def test_answers_are_merged_byte_for_byte_whatever_zlib_this_machine_has(tmp_path, monkeypatch):
    one = write_vlm(tmp_path / "one", methods=("mema",), tasks=())
    compress = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda data, mtime: compress(data, 1, mtime=mtime))
    two = write_vlm(tmp_path / "two", methods=("mema",), tasks=())
    (first,), (second,) = Store.open(one).records(), Store.open(two).records()
    assert first.answers != second.answers
    # Of two runs with the same texts in other bytes one is kept, whatever the order.
    for name, folders in (("alone", [one]), ("both", [one, two]), ("turned", [two, one])):
        assert merge(folders, tmp_path / name) == (1, [])
        store = Store.open(tmp_path / name)
        (kept,) = store.records()
        assert kept in (first, second) and not store.problems
        assert store.answers(kept) == Store.open(one).answers(first)
    assert files(tmp_path / "both") == files(tmp_path / "turned")


def test_answers_are_in_one_file_and_those_of_an_earlier_version_are_read_from_their_folder(
    tmp_path,
):
    live = write_vlm(tmp_path / "live", methods=("mema", "last"), tasks=())
    merge([live], tmp_path / "one")
    said = {one.id: Store.open(live).answers(one) for one in Store.open(live).records()}
    early = shutil.copytree(tmp_path / "one", tmp_path / "early")
    assert not (early / "answers").exists()
    (early / "answers.npz").unlink()
    sums = (early / "SHA256SUMS").read_text().splitlines(keepends=True)
    (early / "SHA256SUMS").write_text("".join(one for one in sums if "answers" not in one))
    assert "its answers are missing" in problems(early)[0]
    shutil.copytree(live / "answers", early / "answers")
    for name in ("one", "early"):
        store = Store.open(tmp_path / name)
        assert {one.id: store.answers(one) for one in store.records()} == said
        assert len(said) == 2 and not problems(tmp_path / name)
    merge([early], tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "one")


def test_damaged_answers_of_the_compact_form_are_named(tmp_path):
    merge([write_vlm(tmp_path / "live", methods=("mema",), tasks=())], tmp_path / "out")
    file = tmp_path / "out" / "answers.npz"
    file.write_bytes(file.read_bytes().replace(b"PK", b"QK"))
    assert "answers.npz is damaged" in problems(tmp_path / "out")[0]


def test_answers_of_a_cell_without_a_line_are_named(tmp_path):
    for name, methods in (("one", ("mema",)), ("both", ("mema", "last"))):
        merge([write_vlm(tmp_path / f"{name}-live", methods=methods, tasks=())], tmp_path / name)
    shutil.copy(tmp_path / "both" / "answers.npz", tmp_path / "one")
    (tmp_path / "one" / "SHA256SUMS").unlink()
    (said,) = problems(tmp_path / "one")
    assert "1 cells with answers have no line in it" in said


def test_answers_that_differ_are_two_contents_of_a_cell(tmp_path):
    one = write_vlm(tmp_path / "one", methods=("mema",), tasks=())
    (first,) = Store.open(one).records()
    said = [replace(each, text="maybe") for each in Store.open(one).answers(first)]
    with Store.create(tmp_path / "two") as store:
        store.write(first, Store.open(one).outcomes(first), Store.open(one).items(first), said)
    with pytest.raises(UserError, match="differs: .*answers="):
        merge([one, tmp_path / "two"], tmp_path / "out")


def test_a_damaged_file_of_answers_is_named_with_its_line():
    with pytest.raises(ValueError, match="not a file of answers"):
        unpack(pack(SAID)[:-5])
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda training: training.update(throw_away=True), "throw_away"),
        (lambda training: training.update(language=[]), "language is [], not str"),
        (lambda training: training["stages"][0].update(parts=[["a"]]), "parts is (['a'],), not"),
    ],
    ids=["a field of a later version", "another type", "another type in a stage"],
)
def test_a_training_that_cannot_be_is_named_and_ignored(tmp_path, change, said):
    folder = write_vlm(tmp_path / "results", methods=("mema",), tasks=())
    (file,) = [f for f in (folder / "facts").iterdir() if b'"training"' in f.read_bytes()]
    values = json.loads(file.read_text())
    change(values["training"])
    other = folder / "facts" / f"{fact_hash(values)}.json"
    other.write_text(canonical(values))
    (cell,) = (folder / "cells").iterdir()
    line = json.loads(cell.read_text().replace(file.stem, other.stem))
    del line["checksum"]
    cell.write_text(json.dumps({**line, "checksum": checksum(line)}))
    store = Store.open(folder)
    assert not store.finished()
    assert said in str(store.problems[0]) and cell.stem in store.problems[0].source


def test_a_record_without_answers_says_so(tmp_path):
    store = Store.open(write_vlm(tmp_path / "results", methods=("mema",), tasks=()))
    (record,) = store.records()
    with pytest.raises(UserError, match="kept no answers"):
        store.answers(replace(record, answers=""))


def test_lines_without_an_id_are_named_one_by_one(tmp_path):
    with Store.create(tmp_path / "live") as live:
        ids = [put(live, spec(seed=seed), 0.5).id for seed in range(4)]
    merge([tmp_path / "live"], tmp_path / "compact")
    (tmp_path / "compact" / "SHA256SUMS").unlink()
    file = tmp_path / "compact" / "cells.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = lines[0].replace('"id":', '"ID":')
    lines[1] = '{"id'
    # The same values, and so the same checksum, in the bytes of another program.
    lines[2] = json.dumps(json.loads(lines[2]), separators=(",", ":"))
    file.write_text("".join(f"{line}\n" for line in lines))
    store = Store.open(tmp_path / "compact")
    assert list(store.finished(reread=True)) == [sorted(ids)[3]]
    said = [str(one) for one in store.problems]
    wanted = ("1: ignored: edited", "2: ignored: truncated", "3: ignored: a line of cell ")
    assert len(said) == 4 and "3 cells with outcomes have no line in it" in said[3]
    assert all(f"cells.jsonl:{text}" in one for one, text in zip(said, wanted, strict=False))


def test_a_damaged_line_of_the_compact_form_is_named_each_time(tmp_path):
    with Store.create(tmp_path / "live") as live:
        first, second = (put(live, spec(seed=seed), 0.5) for seed in range(2))
    merge([tmp_path / "live"], tmp_path / "compact")
    lines = tmp_path / "compact" / "cells.jsonl"
    rows = lines.read_text().splitlines(keepends=True)
    at = next(number for number, row in enumerate(rows) if f'"id": "{first.id}"' in row)
    rows[at] = rows[at].replace('"score": 0.5', '"score": 0.4')
    lines.write_text("".join(rows))
    for _ in range(2):
        store = Store.open(tmp_path / "compact")
        assert list(store.finished()) == [second.id]
        assert any("cells.jsonl:" in one.source for one in store.problems)
