"""Names, notes and errors of others do nothing in any file of a report, rendered or opened."""

import csv
import re
from dataclasses import replace

import chromium
import pytest
from toy_records import CODE, put, record, spec

from fusionbench.records.history import Request
from fusionbench.records.store import Store
from fusionbench.report.build import write_report
from fusionbench.study.study import QUICK, as_plain

TAG = '<img src="http://x.invalid/a.png" onerror="document.hit=1"><script>document.hit=1</script>'
LINK = "[go](javascript:document.hit=1) ![pixel](http://x.invalid/b.png) <http://x.invalid>"
TEX = r"\input{/etc/passwd}\write18{x} $x^2$ % & # _ ~"
FORMULA = '=HYPERLINK("http://x.invalid")'
SLY = f"a|b \x1b[2J {TAG} {LINK} {TEX}"
METHODS = (f"last {SLY}", f"{FORMULA} {TAG}", "penultimate")
HOME = "/home/alice/plugins"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The report with its figures, which take most of the time."""
    return written(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusionbench.report.build.write_figures", lambda *_: [])
        return written(tmp_path_factory.mktemp("study"))


def written(folder):
    facts = {
        "family": f"family {TAG}", "group": f"fine {TAG} |", "metric": f"accuracy {TAG}",
        "control": f"no control: {SLY}", "notes": (f"note {SLY}\n# heading",),
        "unmoved": (f"weight {TAG}",), "trace": {f"weights {TAG}": [0.1, 0.9]},
        "provenance": {"code": {**CODE, "commit": TAG}, "hardware": {"cpu": SLY},
                       "method": f"{HOME}/{TAG}.py", "task": f"{HOME}/tasks.py"},
    }  # fmt: skip
    tasks = ("digits", f"easy {SLY}")
    with Store.create(folder) as store:
        for row, method in enumerate(METHODS):
            for column, task in enumerate(tasks):
                for seed in range(4):
                    cell = replace(spec(method, task, seed), encoder=f"hf:{HOME}/vit {TAG}")
                    put(store, cell, 0.3 + 0.1 * row + 0.05 * column, draw=seed + row, **facts)
        reason = f"Traceback\nValueError: {SLY}"
        for method, why in ((f"odd {TAG}", reason), ("sum", f"x\n{FORMULA}")):
            failed = record(spec(method, "digits"), status="failed", reason=why)
            store.write_failure(replace(failed, **facts))
        store.history.add(
            Request(
                study=as_plain(replace(QUICK, name=f"mine {SLY}\n# heading", note=SLY, seeds=4,
                                       contrasts=({"method": METHODS[0]},))),
                labels=METHODS, tasks=tasks, unavailable={f"left {TAG}": f"why {SLY}\n\n# heading"},
            )
        )  # fmt: skip
    return write_report(folder).page.parent


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if chromium.found() is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    tab = chromium.Page(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


def look(tab, file):
    """Open a file: nothing ran, nothing was fetched; the tags and targets in it."""
    tab.requests.clear()
    tab.open(file)
    tab.settle()
    assert tab.run("document.hit") is None, file
    assert not [url for url in tab.requests if not url.startswith(("file:", "data:"))], file
    found = tab.run(
        "[...document.querySelectorAll('*')].map(e => [e.localName, e.getAttribute('href') || "
        "e.getAttribute('src') || '', [...e.attributes].some(a => a.name.startsWith('on'))])"
    )
    assert not [one for one in found if one[2]], file
    assert not [one for one in found if one[1].startswith(("javascript:", "http:"))], file
    return found


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, HTML and SVG, opened in Chromium",
    "no element, no request",
)
@pytest.mark.slow
def test_no_markdown_file_holds_html_or_a_link_when_rendered(drawn, tab, tmp_path):
    MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
    render = MarkdownIt("commonmark", {"html": True}).enable("table").render
    files = [*drawn.rglob("*.md")]
    assert len(files) > 5
    for file in files:
        page = tmp_path / f"{file.stem}.html"
        page.write_text(f"<meta charset=utf-8><body>{render(file.read_text())}", encoding="utf-8")
        tags = [name for name, _, _ in look(tab, page)]
        assert set(tags) <= {
            *("html", "head", "meta", "body", "h1", "h2", "h3", "h4", "p", "ul", "li", "strong"),
            *("em", "table", "thead", "tbody", "tr", "th", "td", "img", "code", "blockquote"),
        }, (file, set(tags))  # fmt: skip
        targets = tab.run("[...document.images].map(i => i.getAttribute('src'))")
        assert all(re.fullmatch(r"figures/[\w.-]+\.svg", one) for one in targets), file
        widths = tab.run("[...document.querySelectorAll('tr')].map(r => "
                         "r.cells.length - r.closest('table').rows[0].cells.length)")  # fmt: skip
        assert not any(widths), file
        titles = tab.run("[...document.querySelectorAll('h1,h2,h3')].map(h => h.textContent)")
        assert "heading" not in titles, file


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, HTML and SVG, opened in Chromium",
    "no element, no request",
)
@pytest.mark.slow
def test_nothing_in_the_page_runs_or_is_fetched(drawn, tab):
    names = [name for name, _, _ in look(tab, drawn / "report.html")]
    # The second one is the outcomes of single examples, as data that its type keeps from running.
    kinds = tab.run("[...document.scripts].map(one => one.type)")
    assert kinds == ["application/json", ""] and names.count("script") == 2
    assert "iframe" not in names
    values = tab.run("JSON.parse(document.getElementById('outcomes').textContent).methods.length")
    assert values == len(METHODS)


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, HTML and SVG, opened in Chromium",
    "no element, no request",
)
@pytest.mark.slow
def test_nothing_in_a_figure_runs_or_is_fetched(drawn, tab):
    figures = [*drawn.rglob("*.svg")]
    assert len(figures) >= 3
    for file in figures:
        names = {name for name, _, _ in look(tab, file)}
        assert not names & {"script", "foreignObject", "img", "a"}, file


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, LaTeX and CSV",
    "no tag, no command, no formula, no home folder",
)
def test_no_cell_of_any_table_starts_a_formula(report):
    files = [*report.rglob("*.csv")]
    assert len(files) > 5
    cells = [
        (file.name, cell)
        for file in files
        for row in csv.reader(file.read_text().splitlines())
        for cell in row
    ]
    assert any("HYPERLINK" in cell for _, cell in cells)
    for name, cell in cells:
        number = re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|[+-]?inf|-", cell)
        assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (name, cell)


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, LaTeX and CSV",
    "no tag, no command, no formula, no home folder",
)
def test_no_markdown_file_holds_a_tag_or_a_link_of_others(report):
    files = [*report.rglob("*.md")]
    assert len(files) > 5
    for file in files:
        text = file.read_text()
        assert not re.search(r"<[A-Za-z/!?]|\]\((?!figures/)|^# heading", text, re.MULTILINE), file


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, LaTeX and CSV",
    "no tag, no command, no formula, no home folder",
)
def test_no_latex_file_holds_a_command_of_others(report):
    text = "".join(file.read_text() for file in report.rglob("*.tex"))
    assert "textbackslash" in text
    for command in (r"\\input", r"\\write", r"(?<!\\)\$x", r"(?<!\\)[&%#_] _", "\x1b"):
        assert not re.search(command, text), command


@pytest.mark.fault(
    "real files and terminals",
    "hostile names in Markdown, LaTeX and CSV",
    "no tag, no command, no formula, no home folder",
)
def test_no_file_names_a_home_folder_or_holds_a_control_code(report):
    for file in (
        one for one in report.rglob("*") if one.suffix in (".md", ".html", ".csv", ".tex")
    ):
        text = file.read_text()
        assert "alice" not in text and "\x1b" not in text, file
