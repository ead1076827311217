"""Names, notes and errors of others do nothing in any file of a report, rendered or opened."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace

import chromium
import pytest
from toy_records import CODE, put, record, spec
from toy_suite import write_suite

from fusionbench.records.history import Request
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.tables import Marked, escaped, latex_grid, markdown
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
    assert len(files) > 3
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
    assert len(files) > 3
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


# LaTeX that compiles: with an engine where there is one, else its grammar, letter by letter.

NASTY = r"50% & up_to #3 {a} \x ~ ^ $ <b> | ± ‡ – é [q]"
KNOWN = {
    "begin", "end", "centering", "small", "caption", "label", "toprule", "midrule", "bottomrule",
    "textbf", "cellcolor", "pm", "times", "textbackslash", "textasciitilde", "textasciicircum",
    "textless", "textgreater", "textbar", "textdaggerdbl", "textdagger", "ldots", "approx", "geq",
    "leq", "circ", "Delta", "mu",
}  # fmt: skip
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
ENGINE = next(filter(None, map(shutil.which, ("tectonic", "pdflatex", "lualatex", "xelatex"))), "")
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}\usepackage{graphicx}\usepackage[table]{xcolor}
\begin{document}
%s
\end{document}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    import numpy as np

    rng = np.random.default_rng(2)
    suite = {
        name: {task: rng.random((5, 80)) < share for task in ("digits", "scenes_text")}
        for name, share in (("penultimate", 0.5), ("repeat", 0.5), ("mema[q=1,%]_&", 0.8))
    }
    home = tmp_path_factory.mktemp("report")
    folder = write_suite(tmp_path_factory.mktemp("results"), suite)
    write_report(folder, home, ReportOptions(formats=("tex",)))
    return {file.name: file.read_text() for file in sorted((home / "tables").glob("*.tex"))}


def grammar(text):
    """Raise for what no TeX engine would read: a small reader of exactly what we write."""
    assert text.isascii(), [letter for letter in text if not letter.isascii()]
    open_environments, columns, rows, shrunk = [], 0, 0, 0
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        if line in (FIT, "}"):
            # The only braces that span lines: they shrink a table that is wider than the text.
            shrunk += 1 if line == FIT else -1
            assert shrunk in (0, 1), line
            continue
        bare = re.sub(r"\\[{}&%$#_]", "", line)
        assert not re.search(r"[#~^%_]", bare.replace(r"$^\circ$", "")), line
        assert bare.count("$") % 2 == 0, line
        depth = 0
        for letter in bare:
            depth += (letter == "{") - (letter == "}")
            assert depth >= 0, line
        assert depth == 0, line
        commands = re.findall(r"\\([A-Za-z]+)", bare)
        assert set(commands) <= KNOWN, line
        assert not re.search(r"\\[^A-Za-z{}&%$#_\\]", line), line
        if begin := re.match(r"\\begin\{(\w+)\}", line):
            open_environments.append(begin[1])
            found = re.search(r"\\begin\{tabular\}\{(\w+)\}", line)
            columns = len(found[1]) if found else columns
        elif end := re.match(r"\\end\{(\w+)\}", line):
            assert open_environments.pop() == end[1], line
        elif line.endswith(r"\\"):
            assert open_environments[-1] == "tabular" and bare.count("&") == columns - 1, line
            assert not line.startswith("["), line
            rows += 1
    assert not open_environments and rows and not shrunk


def test_every_table_keeps_the_grammar_of_latex(tables):
    assert {"main.tex", "contrasts.tex", "cost.tex", "summary.tex"} <= set(tables)
    for name, text in tables.items():
        grammar(text)
        assert r"\toprule" in text and r"\midrule" in text and r"\bottomrule" in text, name
    assert r"mema[q=1,\%]\_\&" in tables["main.tex"]


@pytest.mark.parametrize(
    "broken",
    [
        r"a & b & c \\", r"a_b & c \\", r"a & {b \\", r"a & \undefined{b} \\", r"a & 5% \\",
        r"a & $b \\", r"[a] & b \\", r"a & ± \\", "\\end{table}",
    ],
)  # fmt: skip
def test_the_grammar_finds_what_would_not_compile(broken):
    good = latex_grid([{"x": "a", "y": "b"}], "caption", "label")
    grammar(good)
    lines = good.splitlines()
    lines[lines.index(r"a & b \\")] = broken
    with pytest.raises(AssertionError):
        grammar("\n".join(lines))


def test_any_text_can_stand_in_a_cell_a_header_a_caption_and_a_label():
    text = latex_grid([{NASTY: NASTY, "y": Marked(text=NASTY, best=True, tied=True)}], NASTY, NASTY)
    grammar(text)
    assert r"\cellcolor{gray!20}\textbf{50\% \& up" in text
    assert escaped("é") == "?"


def test_the_first_cell_of_a_row_may_start_with_a_bracket():
    text = latex_grid([{"x": "[a]", "y": "b"}], "c", "l")
    grammar(text)
    assert r"{}[a] & b \\" in text


def test_markdown_marks_the_best_and_the_tied():
    marked = Marked(text="1", best=True, tied=True), Marked(text="2", tied=True), Marked(text="3")
    rows = [{"m": name, "x": entry} for name, entry in zip(("a|b", "c", "d"), marked, strict=True)]
    text = markdown(rows)
    assert r"a\|b" in text and "**1**" in text and "*2*" in text and "| 3 " in text


@pytest.mark.skipif(not ENGINE, reason="no TeX engine on this machine")
def test_every_table_compiles(tables, tmp_path):
    if compiled("nothing but the packages", tmp_path).returncode:
        pytest.skip("this machine's TeX has not the packages that the tables name")
    done = compiled("\n\\clearpage\n".join(tables.values()), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    broken = next(iter(tables.values())).replace(r"\toprule", r"\toprul")
    assert compiled(broken, tmp_path).returncode


def compiled(body, folder):
    (folder / "all.tex").write_text(DOCUMENT % body)
    options = [] if "tectonic" in ENGINE else ["-interaction=nonstopmode", "-halt-on-error"]
    command = [ENGINE, *options, "all.tex"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
