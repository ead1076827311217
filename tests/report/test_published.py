"""Published numbers: each with its source, beside ours only where the regime is the same."""

from dataclasses import replace

import numpy as np
import pytest
from toy_records import put, record, spec
from vlm_records import TRAINING

from fusionbench.records.pairs import Results
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.report.build import write_report
from fusionbench.report.published import Reported, reported, reported_rows, reported_section

pytestmark = pytest.mark.usefixtures("without_figures")

MMFUSER = next(
    one for one in reported()
    if (one.method, one.benchmark, one.base_model) == ("MMFuser", "GQA", "LLaVA-1.5-7B")
)  # fmt: skip


def tables(*cells):
    rng = np.random.default_rng(0)
    return score_tables([record(cell, rng.integers(0, 2, 40).astype(float)) for cell in cells])


def in_its_regime(number: Reported, **changes):
    training = replace(TRAINING, language=changes.pop("language", f"hf:{number.reader}"))
    start = {"track": "vlm", "encoder": number.encoder, "task": number.task,
             "method": number.ours, "training": training}  # fmt: skip
    cells = [spec(seed=seed, **start | changes) for seed in range(3)]
    return tables(*cells)


def test_every_number_has_a_source_an_address_and_says_how_it_was_read():
    assert len(reported()) > 450
    for one in reported():
        assert one.source and one.url.startswith("https://"), one
        assert one.evidence.startswith(("first-hand", "second-hand")), one
        assert one.method and one.given_by and one.base_model and one.regime and one.metric, one
        assert np.isfinite(float(one.value)), one
        assert one.task == one.task.lower() and " " not in one.task


def test_no_number_contradicts_another_of_the_same_table():
    found = {}
    for one in reported():
        if one.given_by == "users":
            continue
        key = (one.method, one.given_by, one.base_model, one.regime, one.benchmark, one.metric,
               one.source)  # fmt: skip
        assert found.setdefault(key, one.value) == one.value, one


def test_our_names_are_names_that_can_be_run():
    catalog = read_catalog()
    for name in {one.ours for one in reported() if one.ours}:
        assert select_methods(catalog, [name])[0].label == name


def test_in_another_regime_the_section_says_so_and_shows_nothing_of_ours():
    text = reported_section(tables(spec("mmfuser", "digits", 0), spec("mmfuser", "gqa", 0)))
    assert "nothing published can be compared" in text
    assert "| ours" not in text and "digits" not in text
    rows = reported_rows(tables(spec("mmfuser", "gqa", 0)))
    assert all(not row["comparable"] and np.isnan(row["ours_mean"]) for row in rows)
    assert len(rows) == len(reported())


def test_in_the_same_regime_our_cell_stands_beside_the_published_number():
    same = in_its_regime(MMFUSER)
    (row,) = [row for row in reported_rows(same) if row["comparable"]
              and row["given_by"] == "MMFuser"]  # fmt: skip
    assert str(row["value"]) == MMFUSER.value and row["ours_runs"] == 3
    assert row["ours_mean"] == pytest.approx(100 * np.nanmean(same[0].values))
    text = reported_section(same)
    assert "nothing published can be compared" not in text
    line = next(line for line in text.splitlines() if line.startswith("| GQA"))
    assert "mmfuser" in line and f"{MMFUSER.value} (MMFuser)" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"track": "probe"},
        {"encoder": "nano"},
        {"language": "words"},
        {"training": None},
        {"task": "digits"},
    ],
)
def test_one_thing_that_differs_is_enough_to_keep_them_apart(changes):
    rows = reported_rows(in_its_regime(MMFUSER, **changes))
    assert not any(row["comparable"] for row in rows)


def test_a_number_whose_encoder_or_language_model_is_not_known_is_never_comparable():
    for unknown in [one for one in reported() if not (one.reader and one.encoder)]:
        (table,) = in_its_regime(unknown)
        assert not unknown.comparable(table.condition)


def test_the_order_is_that_of_the_sources_and_not_of_the_scores():
    methods = ("mmfuser", "penultimate", "dense_connector-dci", "mema")
    text = reported_section(tables(*(spec(name, "digits", 0) for name in methods)))
    assert "rank nothing" in text
    numbers = [one for one in reported() if one.ours in methods]
    shown = [text.index(f"Given by {one.given_by} ({one.evidence}): {one.source}")
             for one in numbers if one.base_model == "LLaVA-1.5-13B"]  # fmt: skip
    assert shown == sorted(shown)
    part = text.split("images/eval-res.png")[2].split("###")[0]
    rows = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")]
    assert rows == ["method", "LLaVA-1.5", "MMFuser"]


def test_a_folder_without_a_published_method_has_no_such_section(tmp_path):
    with Store.create(tmp_path) as store:
        put(store, spec("my_mix", "digits", 0), 0.5)
    assert reported_section(Results.open(tmp_path).tables) == ""
    write_report(tmp_path)
    assert not list((tmp_path / "report" / "tables").glob("reported.*"))


def test_the_report_has_the_table_in_all_formats(tmp_path):
    with Store.create(tmp_path) as store:
        put(store, spec("mmfuser", "digits", 0), 0.5)
    page = write_report(tmp_path).page.read_text()
    part = page.split("## Published numbers")[1].split("\n## ")[0]
    assert "nothing published can be compared" in part and "| MMFuser" in part
    tables = tmp_path / "report" / "tables"
    assert (tables / "reported.csv").read_text().count("\n") == len(reported()) + 1
    text = (tables / "reported.tex").read_text()
    assert "78.5" not in text and "79.1" in text and text.count("{") == text.count("}")
