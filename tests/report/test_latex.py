"""LaTeX that compiles: with an engine where there is one, else its grammar, letter by letter."""

import re
import shutil
import subprocess

import pytest
from toy_suite import write_suite

from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.tables import Marked, escaped, latex_grid, markdown

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
    assert {"main.tex", "contrasts.tex", "cost.tex", "coverage.tex", "summary.tex"} <= set(tables)
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
