"""The page: one file that fetches nothing, says everything, and works in a browser."""

import re
from html.parser import HTMLParser

import chromium
import pytest
import yaml
from toy_records import put, record, spec
from toy_suite import TASKS, write_study

from fusionbench.records.history import Request
from fusionbench.records.store import Store
from fusionbench.report.build import collect
from fusionbench.report.figures.style import DARK
from fusionbench.report.figures.write import write_figures
from fusionbench.report.html.grid import details, shorter
from fusionbench.report.html.page import inline, study_yaml, write_html
from fusionbench.study.reading import load_study
from fusionbench.study.study import PAPER, as_plain

METHODS = ("penultimate", "last", "mema", "scalar_mix", "token_packer-coarse")
SCORES = {"penultimate": 0.5, "last": 0.31, "mema": 0.72, "scalar_mix": 0.1}


def main_rows():
    for method, score in SCORES.items():
        for task, group, drop in (("digits", "fine", 0), ("easy_vqa", "semantic", 0.05)):
            tested = method == "mema"
            yield {
                "track": "probe", "encoder": "nano", "steps": 60, "method": method, "task": task,
                "group": group, "mean": score - drop, "ci_low": score - drop - 0.04,
                "ci_high": score - drop + 0.04, "n_seeds": 10 if tested else 3,
                "n_examples": 256, "chance": 0.1, "status": "done",
                "delta": 0.22 if tested else None, "delta_low": 0.1 if tested else None,
                "delta_high": 0.34 if tested else None, "p": 0.0012 if tested else None,
                "p_adjusted": 0.0096 if tested else None, "mde": 0.031 if tested else None,
                "verdict": "better" if tested else "", "interval": "runs and images",
                "best": tested, "tied": tested,
            }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    folder = write_study(tmp_path_factory.mktemp("study"), methods=METHODS, tasks=4)
    with Store.create(folder) as store:
        sly = spec("<script>alert(1)</script>", TASKS[0], 0)
        put(store, sly, 0.5, label="<script>alert(1)</script>")
        store.write_failure(
            record(spec("odd", TASKS[0]), status="failed", reason="x\nValueError: <b>no</b>")
        )
    report = collect(Store.open(folder))
    figures = write_figures(report, home / "figures")
    file = home / "report.html"
    write_html(file, report, {"main": list(main_rows())}, figures)
    return file


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched, self.tags, self.files = [], [], [], [], []
        self.followed = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        # Data of the page's own script never runs.
        self.tags.append("data" if ("type", "application/json") in attributes else tag)
        if any(name == "download" for name, _ in attributes):
            self.files.append(dict(attributes)["href"])
            return
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                self.links.append(value[1:])
            elif tag == "a" and name == "href":
                self.followed.append(value)
            elif name in ("href", "xlink:href", "src", "action", "data"):
                self.fetched.append(value)


@pytest.mark.thorough
def test_nothing_is_fetched_and_every_link_has_its_target(page):
    text = page.read_text()
    found = Reader(text)
    # Addresses of papers are links, which fetch nothing until they are followed.
    assert {value[:5] for value in found.fetched} <= {"data:"}
    assert all(value.startswith("https://arxiv.org/abs/") for value in found.followed)
    assert not re.search(r"@import|url\((?!#|\"data:image/webp;base64,)", text)
    files = [value for value in found.files if (page.parent / value).is_file()]
    assert files == found.files and len(files) >= 16
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)


@pytest.mark.thorough
def test_what_stands_in_records_is_text_and_never_runs(page):
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert Reader(text).tags.count("script") == 1
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in text


@pytest.mark.thorough
def test_every_figure_stands_there_with_its_reading(page):
    text = " ".join(page.read_text().split())
    names = [path.stem for path in (page.parent / "figures").glob("*.svg")]
    assert len(names) >= 8
    for name in names:
        figure = text[text.index(f'<figure id="figure-{name}">') :].split("</figure>")[0]
        reading = re.sub(r"<.*?>", "", figure.split("<figcaption>")[1])
        assert "<svg" in figure and len(reading) > 80, name


@pytest.mark.thorough
def test_the_page_says_how_to_read_methods_versions_environment_and_coverage(page):
    text = page.read_text()
    for part in ("What ran", "Methods and versions", "Tasks and data", "Environment", "c0ffee",
                 "How to reproduce", "fusionbench run study.yaml", "Skipped and failed",
                 "needs a grid of 4 x 4", "no test is printed"):  # fmt: skip
        assert part in text, part


def test_the_study_on_the_page_is_the_study_that_ran(tmp_path):
    run = Request(study=as_plain(PAPER), labels=(), tasks=())
    text = study_yaml(run)
    assert yaml.safe_load(text)["seeds"] == PAPER.seeds
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml") == PAPER


def test_details_hold_n_p_and_mde_or_say_why_there_are_none():
    tested, *_ = [details(row) for row in main_rows() if row["method"] == "mema"]
    assert tested.splitlines() == [
        "runs (seeds): 10", "test examples: 256", "mean, %: 72.0",
        "95 % interval, %: 68.0 to 76.0 (runs and images)", "chance, %: 10.0",
        "difference, points: 22.0", "its 95 % interval: 10.0 to 34.0", "p: 0.0012",
        "p, corrected: 0.0096", "verdict: better", "smallest effect it can find (MDE), points: 3.1",
    ]  # fmt: skip
    few, *_ = [details(row) for row in main_rows() if row["method"] == "last"]
    assert few.splitlines()[-1] == "p and MDE: none, a test needs at least 4 runs"


def test_numbers_are_shortened_and_never_changed():
    assert shorter("mean", 0.712345) == "71.2"
    assert shorter("delta", -0.0001) == "0.0"
    assert shorter("p", 0.00000012) == "< 0.0001"
    assert shorter("parameters", 11021569) == "11,021,569"
    assert shorter("n_seeds", 10) == "10"
    assert shorter("verdict", "undecided") == "undecided"
    assert shorter("data", "123456789012") == "123456789012"


def test_two_figures_on_a_page_share_no_id_and_follow_the_theme(tmp_path):
    svg = (
        '<?xml version="1.0"?><svg><defs><path id="a" d="M 1.23456 2"/></defs><use '
        'xlink:href="#a" clip-path="url(#a)" style="fill: #1A1A1A"/><!-- note --></svg>'
    )
    one = inline(svg, "f1", 'a "title"')
    assert 'id="f1-a"' in one and 'href="#f1-a"' in one and "url(#f1-a)" in one
    assert "var(--f1a1a1a)" in one and "M 1.23 2" in one and "note" not in one
    assert 'aria-label="a &quot;title&quot;"' in one


def test_light_and_dark_tell_marks_from_the_page():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first, second):
        high, low = sorted((luminance(first), luminance(second)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert contrast("#1a1a1a", "#ffffff") > 12
    assert contrast(DARK["#1a1a1a"], DARK["#ffffff"]) > 12
    for color in ("#0072b2", "#d55e00"):
        assert contrast(color, "#ffffff") > 3.5
        assert contrast(DARK[color], DARK["#ffffff"]) > 6


needs_browser = pytest.mark.skipif(
    chromium.found() is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    tab = chromium.Page(tmp_path_factory.mktemp("profile"))
    try:
        tab.look(1300, dark=False)
        tab.open(page)
        yield tab
    finally:
        tab.close()


COLUMN = """[...document.querySelectorAll('#table-main-1 tbody tr')]
  .filter(row => !row.hidden).map(row => row.cells[0].textContent)"""
PRESS = "document.querySelectorAll('#table-main-1 thead button')[{}].click()"


@needs_browser
def test_it_opens_from_disk_without_a_request_and_without_an_error(tab, page):
    assert tab.run("document.readyState") == "complete"
    assert tab.requests[0] == page.as_uri()
    assert all(url.startswith("data:") for url in tab.requests[1:])
    assert tab.console == []


@needs_browser
def test_a_click_sorts_by_number_a_second_turns_it_round_a_third_undoes_it(tab):
    first = tab.run(COLUMN)
    assert first == list(SCORES)
    by_score = sorted(SCORES, key=SCORES.get, reverse=True)
    for expected, mark in ((by_score, "descending"), (by_score[::-1], "ascending"), (first, None)):
        tab.run(PRESS.format(1))
        assert tab.run(COLUMN) == expected
        heads = "document.querySelectorAll('#table-main-1 thead th')[1].getAttribute('aria-sort')"
        assert tab.run(heads) == mark
    tab.run(PRESS.format(0))
    assert tab.run(COLUMN) == sorted(SCORES)
    tab.run(PRESS.format(0))
    tab.run(PRESS.format(0))


@needs_browser
def test_typing_filters_rows_and_counts_them(tab):
    box = "document.querySelector('#table-main-1 [data-filter]')"
    for word, left in (("MEM", ["mema"]), ("mi sca", ["scalar_mix"]), ("nothing", [])):
        tab.run(f"{box}.value = '{word}'; {box}.dispatchEvent(new Event('input'))")
        assert tab.run(COLUMN) == left
        count = tab.run("document.querySelector('#table-main-1 .count').textContent")
        assert count == f"{len(left)} of {len(SCORES)} rows"
    tab.run(f"{box}.value = ''; {box}.dispatchEvent(new Event('input'))")
    assert tab.run(COLUMN) == list(SCORES)


@needs_browser
def test_columns_can_be_narrowed_to_a_group_of_tasks(tab):
    choice = "document.querySelector('#table-main-1 select')"
    shown = """[...document.querySelectorAll('#table-main-1 thead th')]
      .filter(head => !head.hidden).map(head => head.textContent.trim())"""
    tab.run(f"{choice}.value = 'semantic'; {choice}.dispatchEvent(new Event('change'))")
    assert tab.run(shown) == ["method", "semanticeasy_vqachance 10"]
    tab.run(f"{choice}.value = ''; {choice}.dispatchEvent(new Event('change'))")
    assert len(tab.run(shown)) == 3


@needs_browser
def test_hovering_shows_n_p_and_mde_and_leaving_hides_them(tab):
    tab.run("document.querySelector('#table-main-1').scrollIntoView()")
    tab.settle()
    place = tab.run("""(() => { const box = document.querySelectorAll('#table-main-1 tbody tr')[2]
      .cells[1].getBoundingClientRect(); return [box.x + 5, box.y + 5]; })()""")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    tip = "(t => t.hidden ? '' : t.innerText)(document.getElementById('tip'))"
    text = tab.run(tip)
    assert all(part in text for part in ("runs (seeds): 10", "p: 0.0012", "MDE), points: 3.1"))
    inside = """(() => { const b = document.getElementById('tip').getBoundingClientRect();
      return b.left >= 0 && b.right <= innerWidth && b.bottom <= innerHeight; })()"""
    assert tab.run(inside)
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert tab.run(tip) == ""


@needs_browser
@pytest.mark.parametrize("width", [1400, 800, 390])
def test_no_width_makes_the_page_itself_scroll_sideways(tab, page, width):
    tab.look(width, dark=False, phone=width < 500)
    tab.open(page)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.look(1300, dark=False)


@pytest.mark.thorough
@needs_browser
def test_the_page_and_its_figures_follow_the_systems_theme_and_the_button(tab, page):
    paper = "getComputedStyle(document.body).backgroundColor"
    patch = "getComputedStyle(document.querySelector('figure svg path')).fill"
    seen = {}
    for dark in (False, True):
        tab.look(1300, dark=dark)
        tab.open(page)
        seen[dark] = (tab.run(paper), tab.run(patch))
        # The figure's own background is the page's.
        assert seen[dark][0] == seen[dark][1]
    assert seen[False] != seen[True]
    tab.run("document.getElementById('theme').click()")
    assert (tab.run(paper), tab.run(patch)) == seen[False]
    tab.look(1300, dark=False)
    assert tab.console == []
