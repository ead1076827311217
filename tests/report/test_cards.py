"""Cards and the example browser of the page: what they say is in the records, or in the source."""

import json
import re
from dataclasses import replace

import chromium
import numpy as np
import pytest
from toy_records import CODE, record, spec
from toy_suite import items_of, quick_disk, write_suite

from fusionbench.records.files import write_atomic
from fusionbench.records.pictures import ExamplePictures, draw_sheet, picture_file, read_pictures
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, collect, write_report
from fusionbench.report.html.cards import anchor, diagram, method_cards, task_cards
from fusionbench.report.html.examples import LETTERS, browser, levels, packed

SEEDS, COUNT = 4, 21
QUESTIONS = ("which <digit>?", "is it <even>?")


def outcomes(rng, share):
    return (rng.random((SEEDS, COUNT)) < share).astype(np.float32)


def pictures():
    images = np.zeros((COUNT, 8, 8, 3), dtype=np.uint8)
    tiles, (width, height), columns, sheet = draw_sheet(images, np.arange(COUNT))
    return ExamplePictures(
        task="digits", data="d" * 32, items=items_of("digits", COUNT).hash, texts=QUESTIONS,
        questions=tuple(n % 2 for n in range(COUNT)), answers=("one", "two", "three"),
        right=tuple(0 if n < 12 else 1 + n % 2 for n in range(COUNT)), tiles=tiles[:15],
        width=width, height=height, columns=columns, sheet=sheet,
    )  # fmt: skip


@pytest.fixture(scope="module")
def suite():
    rng = np.random.default_rng(3)
    shares = {"penultimate": 0.5, "mema": 0.8, "scalar_mix": 0.25, "repeat": 0.5}
    return {
        name: {task: outcomes(rng, share) for task in ("digits", "textile")}
        for name, share in shares.items()
    }


@pytest.fixture(scope="module")
def folder(suite, tmp_path_factory):
    def origin(method):
        # A plug-in that has the name of a method of the package.
        source = "/x/scalar_mix.py" if method == "scalar_mix" else "built-in"
        return {"code": CODE, "method": source, "task": "built-in"}

    def size(method):
        return {"fusion": 9 if method == "mema" else 2, "projector": 20, "reader": 30}

    place = tmp_path_factory.mktemp("cards") / "r"
    write_suite(
        place, suite, study={"contrasts": [{"method": "mema"}]}, provenance=origin, parameters=size
    )
    one = pictures()
    file = picture_file(place, one.task, one.data, one.items)
    write_atomic(file, one.to_json().encode())
    return place


@pytest.fixture(scope="module")
def report(folder):
    return collect(Store.open(folder))


def test_every_method_has_a_card_in_the_order_of_the_leaderboard(report):
    cards = method_cards(report)
    assert cards[0].name == "mema" and {card.name for card in cards} == {
        "mema", "penultimate", "repeat", "scalar_mix",
    }  # fmt: skip
    marks = {card.name: card.marks for card in cards}
    assert marks["penultimate"] == "baseline" and marks["repeat"] == "control"
    # 25 % is chance here.
    assert "not above chance" in marks["scalar_mix"] and marks["mema"] == ""


def test_a_card_has_paper_equation_cost_and_its_own_scores(report):
    card = next(one for one in method_cards(report) if one.name == "mema")
    assert card.link == "https://arxiv.org/abs/2603.00655" and "sigmoid(a h)" in card.text
    assert card.facts["parity"].startswith("exact") and card.facts["matched control"] == "repeat"
    added = card.facts["parameters added to the whole model of penultimate"]
    assert added == "7 (fusion 7, projector 0, reader 0)"
    (scores,) = card.scores
    (analysis,) = report.analyses
    row = analysis.table.methods.index("mema")
    lines = {line.name: line for line in scores.lines}
    assert lines["suite (2 tasks)"].score == analysis.suite[row, analysis.scopes[0]].text
    assert lines["digits"].score == analysis.cells[row, 0].text
    assert lines["digits"].difference.startswith("+")


def test_a_plug_in_is_not_described_by_the_built_in_method_of_its_name(report):
    card = next(one for one in method_cards(report) if one.name == "scalar_mix")
    assert card.text == "" and card.link == "" and "parity" not in card.facts
    assert "not read" in card.about


def table_of(taps, **facts):
    cell = replace(record(spec("mine"), [1.0, 0.0]), taps=taps, **facts)
    (table,) = score_tables([cell])
    return table


@pytest.mark.parametrize(
    ("taps", "words", "boxes"),
    [
        (((3,),), "Reads hs[3].", [3]),
        (((8,), (0, 1, 2)), "Reads hs[8], the mean of hs[0, 1, 2].", [0, 1, 2, 8]),
        (((7,), (7,)), "Reads hs[7], repeated.", [7]),
        # Extra taps follow hs[8], the last layer first.
        (((9,),), "Reads hs[8] after the final norm.", [8]),
    ],
)
def test_the_diagram_shows_the_layers_that_are_read(taps, words, boxes):
    text = diagram(table_of(taps), 0, depth=8)
    assert f'aria-label="{words}"' in text and text.count("<rect") == 9
    read = re.findall(r'<text class="read"[^>]*>(\d+)<', text)
    assert [int(one) for one in read] == boxes


def test_a_method_in_the_encoder_sees_every_block_and_none_without_taps_has_a_diagram():
    inside = diagram(table_of(((0,), (1,)), in_encoder=True), 0, depth=8)
    assert "Runs inside the encoder" in inside and 'rect class="unread"' not in inside
    assert diagram(table_of(()), 0, depth=8) == ""


def test_the_card_of_a_task_shows_every_answer_and_its_sizes_and_ceilings(report):
    problems = []
    found = list(read_pictures(report.results.store.folder, problems))
    cards = {card.name: card for card in task_cards(report, found)}
    card = cards["digits"]
    assert problems == [] and len(card.pictures) == 8
    shown = [answer for _, _, answer in card.pictures]
    # All three answers come before one comes twice.
    assert set(shown[:3]) == {"one", "two", "three"}
    assert card.facts["examples"].endswith(f"{COUNT} test") and card.facts["chance"] == "25.0 %"
    assert card.facts["answers"] == "3: one, two, three"
    assert card.facts["highest mean of a method"].endswith("(mema)")
    assert cards["textile"].facts["licence"] == "MIT"
    assert cards["textile"].facts["pictures"] == "none in the folder of results"


def test_ids_of_cards_are_plain_and_differ():
    first = anchor("method", "layer[index=4]")
    assert first == "method-layer-index-4"
    assert anchor("method", "layer-index=4", [first]) == "method-layer-index-4-2"
    assert anchor("method", "<script>") == "method-script"
    assert anchor("task", "é") == "task-unnamed"


def test_levels_survive_packing():
    found = levels(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), 4)
    assert found.tolist() == [0, 1, 2, 3, 4]
    text = packed(found)
    assert len(text) == 3
    pairs = [divmod(LETTERS.index(letter), 8) for letter in text]
    assert [level for pair in pairs for level in pair][:5] == found.tolist()


def test_the_browser_has_every_outcome_and_no_tag(report, suite):
    found = list(read_pictures(report.results.store.folder, []))
    text = browser(report, found)
    values = json.loads(text)
    assert "<" not in text and values["left_out"] == 0
    # The planned method against the baseline comes first.
    assert [values["methods"][place] for place in values["pair"]] == ["mema", "penultimate"]
    (digits, textile) = values["tasks"]
    assert digits["texts"] == list(QUESTIONS) and textile["names"][0] == "textile/00000"
    row = values["methods"].index("mema")
    counts = suite["mema"]["digits"].sum(axis=0).astype(int)
    assert digits["levels"][row] == packed(counts) and digits["runs"] == digits["top"] == SEEDS


@pytest.fixture(scope="module")
def tab(folder, tmp_path_factory):
    if chromium.found() is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    out = tmp_path_factory.mktemp("out")
    with quick_disk():
        page = write_report(folder, out, ReportOptions(formats=("html", "csv"))).page
    tab = chromium.Page(tmp_path_factory.mktemp("profile"))
    try:
        tab.look(1400, dark=False)
        tab.open(page.with_suffix(".html"))
        yield tab
    finally:
        tab.close()


def differing(suite, task, right, wrong):
    one, other = suite[right][task].mean(axis=0), suite[wrong][task].mean(axis=0)
    return int(((one > 0.5) & (other < 0.5)).sum())


def count(tab):
    text = tab.run("document.querySelector('#browser .count').textContent")
    return [int(number) for number in re.findall(r"\d+", text)[:3]], text


def test_the_browser_shows_the_examples_on_which_two_methods_differ(tab, suite):
    pairs = ("mema", "penultimate"), ("penultimate", "mema")
    there, back = (differing(suite, "digits", *pair) for pair in pairs)
    (found, total, other), text = count(tab)
    assert (found, total, other) == (there, COUNT, back) and "first 15 examples" in text
    shown = "document.querySelectorAll('#browser [data-list] li')"
    assert tab.run(f"{shown}.length") == there
    said = tab.run(f"[...{shown}].map(item => item.textContent).join(' ')")
    assert "<digit>" in said or "<even>" in said
    pictured = tab.run("document.querySelectorAll('#browser .tile').length")
    assert 0 < pictured <= there
    # By keyboard alone: the button turns the pair round.
    tab.run("document.querySelector('#browser [data-swap]').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                 windowsVirtualKeyCode=13)  # fmt: skip
    assert count(tab)[0] == [back, COUNT, there]
    choose = "(box => { box.value = '1'; box.dispatchEvent(new Event('change')); })"
    tab.run(f"{choose}(document.querySelector('#browser [data-task]'))")
    assert count(tab)[0][0] == differing(suite, "textile", "penultimate", "mema")
    assert tab.run("document.querySelectorAll('#browser .tile').length") == 0
    assert tab.console == []


@pytest.mark.thorough
def test_a_link_opens_its_card_and_arrow_keys_move_through_details(tab):
    tab.run("location.hash = '#method-mema'")
    tab.settle()
    assert tab.run("document.querySelector('#method-mema').open")
    cell = "document.querySelector('#table-main-1 td[data-details]')"
    assert tab.run(f"{cell}.tabIndex") == 0
    tab.run(f"{cell}.focus()")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowDown", code="ArrowDown")
    assert tab.run("document.activeElement.parentElement.rowIndex") == 2
    assert "test examples" in tab.run("document.getElementById('tip').innerText")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowUp", code="ArrowUp")
    assert tab.run("document.activeElement.parentElement.rowIndex") == 1
    assert tab.run("document.querySelectorAll('td[data-details][tabindex=\"0\"]').length") == 1
    assert tab.console == []
