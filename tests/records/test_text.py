"""Text of others does nothing where it is shown, and records name no folder of a user."""

import csv
import getpass
import io
import json
from dataclasses import fields
from pathlib import Path

import pytest
from toy_records import put, record, spec

from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.records.store import Store
from fusionbench.records.text import (
    checkpoint_name,
    encodable,
    from_home,
    impersonal,
    markdown_page,
    spreadsheet_cell,
    visible,
)
from fusionbench.report.figures.style import _csv
from fusionbench.report.tables import Marked, comma_separated, markdown

FORMULAS = (
    '=HYPERLINK("http://x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1",
)  # fmt: skip
FIRST = ("=", "+", "@", "\t", "\r", "\n")
NUMBERS = ("-1", "+1.2", "-1e-05", "-0.000000", "-inf", "-", "0.5", "1 = 2", "layer[index=-2]")


def test_escape_sequences_are_shown_and_not_obeyed():
    text = "a\x1b]0;title\x07b\x1b[2J\x9b31m\u202ec\tend\nnext"
    assert visible(text) == "a\\x1b]0;title\\x07b\\x1b[2J\\x9b31m\\u202ec\tend\nnext"
    assert visible("± 3 — ü 日本 \t\n") == "± 3 — ü 日本 \t\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp932", "no such encoding"])
def test_letters_that_an_encoding_lacks_have_a_twin(encoding):
    text = "71.2 ± 3.1 — not run, 3 × 4 → “yes” 日本"
    shown = encodable(text, encoding)
    shown.encode("ascii" if encoding.startswith("no") else encoding)
    if encoding in ("ascii", "no such encoding"):
        assert shown == '71.2 +/- 3.1 - not run, 3 x 4 -> "yes" ??'
    assert encodable(text, "utf-8") == text


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_table_starts_a_formula(text):
    import pandas as pd

    written = [comma_separated([{text: 1.0, "b": text}]), _csv(pd.DataFrame({"b": [text]}))]
    for table in written:
        cells = [cell for row in csv.reader(io.StringIO(table, newline="")) for cell in row]
        # A carriage return would end the row for some programs.
        safe = text.replace("\r", "\\r") if "\r" in text else f"'{text}"
        assert safe in cells and not any(cell.startswith(FIRST) for cell in cells)


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_and_names_stay_what_they_are(text):
    assert spreadsheet_cell(text) == text
    assert comma_separated([{"a": text, "lr": -0.5}]) == f"a,lr\n{text},-0.500000\n"


def test_every_table_of_a_page_keeps_its_columns():
    table = markdown([{"a|b": "x|y\nz", "c": Marked(text="1|2", best=True)}])
    head, rule, *rows = table.strip().splitlines()
    assert len(rows) == 1 and rule.count("|") == 3
    for line in (head, *rows):
        assert line.replace("\\|", "").count("|") == 3, line


def test_a_page_has_no_tags_and_no_links_of_others():
    page = markdown_page(
        "<img src=x onerror=alert(1)> <!-- a --> </p> <?php <https://x.org> p <0.001, a < b\n"
        "![chart](figures/scores.svg) ![pixel](http://x.org/a.png) [go](javascript:alert(1))\n"
        "[r]: javascript:alert(1)\n- [r]: http://x.org\n"
    )
    assert "<0.001, a < b" in page and "![chart](figures/scores.svg)" in page
    assert "<img" not in page and "<!--" not in page and "<?" not in page and "<https" not in page
    assert "](http" not in page and "](javascript" not in page and "[r]:" not in page


def test_paths_name_neither_home_nor_user(monkeypatch, tmp_path):
    home = tmp_path / "people" / "alice"
    (home / "desk").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "desk")
    text = (
        f'  File "{home}/plugins/blend.py", line 3, in forward\n'
        f"FileNotFoundError: '{home}/data/a.png' and {home}/desk/b.png and {home}s/c"
    )
    assert impersonal(text) == (
        '  File "plugins/blend.py", line 3, in forward\n'
        f"FileNotFoundError: '~/data/a.png' and ./b.png and {home}s/c"
    )
    assert from_home(f'"hf:{home}/models/vit"') == '"hf:~/models/vit"'
    name = getpass.getuser()
    assert (
        impersonal(f"/scratch/{name}/x /scratch/{name}s/x") == f"/scratch/USER/x /scratch/{name}s/x"
    )
    monkeypatch.setenv("HOME", "/")
    assert from_home("/a/b") == "/a/b"


def test_an_account_without_home_or_name_changes_nothing(monkeypatch):
    def unknown(*_):
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", unknown)
    assert from_home("/a/b") == "/a/b" and impersonal("/a/b") == "/a/b"


def test_a_checkpoint_in_a_folder_is_shown_by_its_last_part():
    assert checkpoint_name("hf:/home/alice/clip") == "hf:clip"
    assert checkpoint_name("timm:~/vit[fit=crop]") == "timm:vit[fit=crop]"
    for name in ("nano", "hf:openai/clip", "hf:clip@0123456789ab"):
        assert checkpoint_name(name) == name


# What a record may hold. A new entry is a decision: does it name a person or a machine?
_SPEC = set(
    "track stage encoder weights method method_version settings task task_version data budget seed "
    "training".split()
)
_RECORD = set(
    "spec status reason label family control representative reads_answers group task_family "
    "in_suite metric chance score scores left_out examples distinct tokens items outcomes "
    "seed_scope lr tuning lr_at_edge parameters taps in_encoder notes loss trace unmoved fit model "
    "model_weights measures answers counts source seconds provenance schema".split()
)


def test_a_record_holds_known_fields_only():
    assert {one.name for one in fields(CellSpec)} == _SPEC
    assert {one.name for one in fields(CellRecord)} == _RECORD


@pytest.mark.parametrize("failed", [False, True], ids=["cell", "failure"])
def test_no_record_names_a_folder_of_the_user(failed, tmp_path, monkeypatch):
    home = tmp_path / "alice"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    facts = {
        "reason": f'File "{home}/p/blend.py", line 1\nOSError: {home}/a.png',
        "notes": (f"read from {home}/b",),
        "provenance": {
            "code": {"fusionbench": "0.1.0"}, "software": {"torch": f"2.11 ({home}/venv)"},
            "method": f"{home}/plugins/blend.py", "task": "toy-tasks 1.0", "encoder": "built-in",
        },
    }  # fmt: skip
    with Store.create(tmp_path / "out") as store:
        if failed:
            store.write_failure(record(spec(), status="failed", **facts))
        else:
            put(store, spec(), 0.5, **facts)
    for file in (tmp_path / "out").rglob("*.json"):
        assert "alice" not in file.read_text()
    store = Store.open(tmp_path / "out")
    (found,) = store.failures() if failed else store.records()
    assert found.id == spec().id and found.notes == ("read from ~/b",)
    assert found.provenance["method"] == "blend.py" and found.provenance["task"] == "toy-tasks 1.0"
    assert json.dumps(found.reason) == json.dumps('File "p/blend.py", line 1\nOSError: ~/a.png')
