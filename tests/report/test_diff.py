"""Two folders: what differs in what was asked, what ran, where, and the scores."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from paired_studies import items, outcomes, study
from toy_records import record, spec

from fusionbench.api.errors import UserError
from fusionbench.cli.reports import diff
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report.diff import (
    Folder,
    changes,
    identity_changes,
    matched,
    origin_changes,
    page,
    shifts,
)
from fusionbench.study.study import QUICK, as_plain

GAINS = {"penultimate": 0.0, "mema": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "a", GAINS)


def compared(a, b):
    first, second = Results.open(a), Results.open(b)
    (sides,), left, right = matched(first.tables, second.tables)
    assert not left and not right
    return sides, {(one.method, one.over): one for one in shifts(first, second, sides)}


def text_of(a, b):
    return page(*(Folder(name=n, results=Results.open(f)) for n, f in (("a", a), ("b", b))))[0]


def test_a_folder_and_its_copy_do_not_differ(folder, tmp_path):
    copy = study(tmp_path / "copy", GAINS)
    _, found = compared(folder, copy)
    assert all(one.measured.identical and one.answer.p is None for one in found.values())
    text = text_of(folder, copy)
    assert "36 of them are the same cell by their identity, of which 36 have equal scores" in text
    assert text.count("No difference.") == 2 and "±" not in text.split("| method")[1]


def test_one_identity_with_two_outcomes_is_pointed_out(folder, tmp_path):
    other = study(tmp_path / "other", GAINS, draw=1)
    assert "**36 cells have one identity and two outcomes**" in text_of(folder, other)


def test_what_differs_in_identity_is_named_with_the_number_of_cells(folder, tmp_path):
    budget = replace(QUICK.budget, steps=61)
    other = study(tmp_path / "other", GAINS, budget=budget, data="e" * 32, method_version=2)
    sides, _ = compared(folder, other)
    found = {one.what: (one.a, one.b, count) for one, count in identity_changes(sides.namesakes())}
    assert found == {
        "budget.steps": (str(QUICK.budget.steps), "61", 36),
        "data of the task": ("d" * 32, "e" * 32, 36),
        "version of the method": ("1", "2", 36),
    }
    batch = QUICK.budget.batch
    for steps in (QUICK.budget.steps, 61):
        assert f"{steps} steps of {batch}" in sides.title


def test_code_packages_and_machines_that_differ_are_named(folder, tmp_path):
    new = {"code": {"fusionbench": "0.1.0", "commit": "beef", "dirty": True},
           "hardware": {"device": "cuda:0"}, "method": "a-plugin 1.0"}  # fmt: skip
    other = study(tmp_path / "other", GAINS, facts={"provenance": new})
    sides = [Folder(name=str(f), results=Results.open(f)).done for f in (folder, other)]
    found = {one.what: (one.a, one.b) for one in origin_changes(*sides)}
    assert found == {
        "code commit": ("c0ffee", "beef"),
        "code dirty": ("False", "True"),
        "hardware device": ("nothing", "cuda:0"),
        "methods from": ("nothing", "a-plugin 1.0"),
    }
    mixed = study(tmp_path / "other", {"last": 0.0}, facts={"provenance": new | {"code": {}}})
    sides = [Folder(name="", results=Results.open(f)).done for f in (folder, mixed)]
    found = {one.what: one.b for one in origin_changes(*sides)}
    assert found["code commit"] == "beef (36 cells)"


def test_what_was_asked_is_compared_key_by_key(tmp_path):
    folders = []
    for name, asked in (("a", QUICK), ("b", replace(QUICK, seeds=5, methods=("mema",)))):
        folders.append(study(tmp_path / name, {"mema": 0.0}))
        run = Request(study=as_plain(asked), labels=("mema",), tasks=("digits",), version="0.1.0")
        Store.open(folders[-1]).history.add(run)
    text = text_of(*folders).split("## What ran")[0]
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][
        2:
    ] == ["methods", "seeds"]


def test_a_planted_shift_is_found_and_turns_round_with_the_folders(folder, tmp_path):
    other = study(tmp_path / "other", {"penultimate": 0.0, "mema": 0.1})
    _, found = compared(folder, other)
    _, back = compared(other, folder)
    for over in ("suite", "digits", "textile", "easy_vqa"):
        one, two = found["mema", over], back["mema", over]
        assert float(one.measured.estimate.value) > 0.05 and one.answer.p_adjusted < 0.05
        assert float(two.measured.estimate.value) == pytest.approx(
            -float(one.measured.estimate.value)
        )
        assert two.answer.p == pytest.approx(one.answer.p)
        assert found["penultimate", over].measured.identical


def test_with_three_seeds_no_test_is_printed(tmp_path):
    one = study(tmp_path / "a", GAINS, seeds=3)
    two = study(tmp_path / "b", {"penultimate": 0.0, "mema": 0.1}, seeds=3)
    _, found = compared(one, two)
    assert all(shift.answer.p is shift.answer.p_adjusted is None for shift in found.values())
    assert "(q" not in text_of(one, two)


def test_only_examples_that_both_folders_have_are_paired_by_name(tmp_path):
    folders = {}
    for name, start in (("a", 0), ("b", 100)):
        with Store.create(tmp_path / name) as store:
            for seed in range(5):
                # The score of an example is told by its number: paired rightly, nothing differs.
                scores = ((np.arange(start, start + 300) + seed) % 3 == 0).astype(np.float32)
                cell = spec("mema", "digits", seed)
                names = items("digits", 300, start)
                store.write(record(cell, scores), scores, names)
        folders[name] = tmp_path / name
    _, found = compared(folders["a"], folders["b"])
    one = found["mema", "digits"]
    assert one.measured.identical and one.measured.examples == 200


def test_what_only_one_folder_has_is_listed_and_not_compared(folder, tmp_path):
    other = study(tmp_path / "b", {"mema": 0.0, "last": 0.0}, seeds=8, tasks=("digits",))
    with Store.create(other) as store:
        scores = outcomes("mema", "digits", 0, 0.0)
        cell = spec("mema", "digits", 0, encoder="dinov2-small")
        store.write(record(cell, scores), scores, items("digits"))
    text = text_of(folder, other)
    assert "- only in B: everything under dinov2-small" in text
    assert "- only in A (nano): methods penultimate" in text
    assert "- only in A (nano): tasks easy_vqa, textile" in text
    assert "- only in B (nano): methods last" in text
    assert "- only in B (nano): seeds 6, 7" in text


def test_runs_of_different_seeds_are_not_paired(tmp_path):
    folders = []
    for name, seeds in (("a", (0, 1, 2)), ("b", (3, 4, 5))):
        with Store.create(tmp_path / name) as store:
            for seed in seeds:
                scores = outcomes("mema", "digits", seed, 0.0)
                store.write(record(spec("mema", "digits", seed), scores), scores, items("digits"))
        folders.append(tmp_path / name)
    _, found = compared(*folders)
    assert found["mema", "digits"].gap == "no seed of mema on digits is in both"
    assert "No finished cell has the same" in text_of(*folders)


def test_the_command_writes_every_difference_as_csv(folder, tmp_path):
    other = study(tmp_path / "other", {"penultimate": 0.0, "mema": 0.1})
    out, stream = tmp_path / "diff.csv", io.StringIO()
    assert diff(folder, other, out=out, stream=stream) == 0
    rows = {(r["method"], r["over"]): r for r in csv.DictReader(out.read_text().splitlines())}
    assert len(rows) == 2 * 4
    assert float(rows["mema", "suite"]["low"]) > 0 and rows["penultimate", "digits"]["q"] == ""
    assert rows["penultimate", "digits"]["difference"] == "0.000000"
    with pytest.raises(UserError, match="no results in"):
        diff(folder, tmp_path / "nowhere", out=None, stream=stream)


def test_a_long_value_is_cut_and_an_absent_one_is_said():
    (one,) = changes({"methods": ["m"] * 50}, {})
    assert len(one.a) == 60 and one.a.endswith("...") and one.b == "not set"
