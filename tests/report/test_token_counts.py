"""Methods that change the number of tokens are marked, with the controls of as many tokens."""

import numpy as np
import pytest
from toy_suite import read, the, write_suite

from fusionbench.records.pairs import Results
from fusionbench.report.build import write_report
from fusionbench.report.main_table import token_counts, token_lines

pytestmark = pytest.mark.usefixtures("no_figures")

TOKENS = {"penultimate": 16, "mix": 16, "packer": 4, "packer-like": 4, "dense": 9}
CONTROLS = {"packer": "packer-like", "mix": "repeat", "dense": "repeat"}


def suite(methods=tuple(TOKENS)):
    draw = np.random.default_rng(2)
    return {name: {"digits": (draw.random((4, 50)) < 0.6).astype(float)} for name in methods}


def lines(folder, baseline="penultimate"):
    (table,) = Results.open(folder).tables
    return list(token_lines(table, token_counts(table, baseline)))


@pytest.fixture
def folder(tmp_path):
    return write_suite(
        tmp_path / "results",
        suite(),
        tokens=lambda name: TOKENS[name],
        control=lambda name: CONTROLS.get(name, "none: it is a control itself"),
    )


def test_the_mark_stands_for_another_number_of_tokens_and_names_controls_of_as_many(
    folder, tmp_path
):
    assert lines(folder)[1:] == [
        "- 4 tokens: `packer`; controls with as many: `packer-like`",
        "- 9 tokens: `dense`; controls with as many: none here",
    ]
    write_report(folder, tmp_path / "out")
    page = (tmp_path / "out" / "tables" / "main.md").read_text()
    assert all(line in page for line in lines(folder))
    marked = {name for name in TOKENS if f"| {name} §" in page}
    assert marked == {"packer", "packer-like", "dense"}
    assert r"packer \S{}" in (tmp_path / "out" / "tables" / "main.tex").read_text()
    found = read(tmp_path / "out", "main")
    assert {name: int(the(found, method=name)["tokens"]) for name in TOKENS} == TOKENS


def test_records_without_counts_get_no_mark(tmp_path):
    old = write_suite(tmp_path / "old", suite())
    assert lines(old) == []
    write_report(old, tmp_path / "out")
    assert "§" not in (tmp_path / "out" / "tables" / "main.md").read_text()
    # An old baseline says nothing about new records, and an old method is not marked beside them.
    part = write_suite(tmp_path / "a", suite(), tokens=lambda name: 4 * (name == "packer"))
    assert lines(part) == []
    part = write_suite(tmp_path / "b", suite(), tokens=lambda name: 16 * (name == "penultimate"))
    assert lines(part) == []


def test_without_penultimate_the_baseline_of_the_study_is_the_measure(tmp_path):
    rest = suite(("mix", "packer"))
    other = write_suite(tmp_path / "other", rest, tokens=lambda name: TOKENS[name])
    assert "than `mix` (16)" in lines(other, "mix")[0]
    assert lines(other, "absent") == []
