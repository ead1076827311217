"""A table for people: text with marks, written as Markdown or as LaTeX with booktabs.

Own LaTeX instead of a library's: the bytes then change with no library, and a test checks the
grammar of every character that a name can hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text of a cell: `best` is bold; `tied` is shaded in LaTeX and italic in Markdown."""

    text: str
    best: bool = False
    tied: bool = False


Entry = str | Marked
GridRow = Mapping[str, Entry]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "–": "--", "—": "---", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "°": r"$^\circ$", "‡": r"\textdaggerdbl{}", "†": r"\textdagger{}", "…": r"\ldots{}",
    "≈": r"$\approx$", "Δ": r"$\Delta$", "µ": r"$\mu$",
}  # fmt: skip
PACKAGES = r"\usepackage{booktabs}, \usepackage[table]{xcolor}"


def markdown_grid(rows: Sequence[GridRow]) -> str:
    """A Markdown table; numbers stay as they were written."""
    if not rows:
        return "Nothing to show.\n"
    shown = [{key: _markdown(value) for key, value in row.items()} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def latex_grid(rows: Sequence[GridRow], caption: str, label: str) -> str:
    """A LaTeX table to paste or to input; all rows share the first one's columns."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [
        f"% needs {PACKAGES}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{_label(label)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        _latex_row([escaped(name) for name in columns]),
        r"\midrule",
        *(_latex_row([_latex(row.get(name, "")) for name in columns]) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a character that LaTeX may not know becomes a question mark."""
    found = "".join(_LATEX.get(letter, letter) for letter in text)
    return "".join(letter if letter.isascii() else "?" for letter in found)


def _markdown(entry: Entry) -> str:
    if isinstance(entry, str):
        return entry.replace("|", "\\|")
    text = entry.text.replace("|", "\\|")
    return f"**{text}**" if entry.best else f"*{text}*" if entry.tied else text


def _latex(entry: Entry) -> str:
    if isinstance(entry, str):
        return escaped(entry)
    text = escaped(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return rf"\cellcolor{{gray!20}}{text}" if entry.tied else text


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket at the start of a row would be read as an argument of the line before.
    first = f"{{}}{cells[0]}" if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _label(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text)
