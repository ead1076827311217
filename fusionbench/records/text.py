"""Text of others in Markdown, CSV, terminals and records: nothing in it acts, no path names a user.

Names, notes, settings and errors come from plug-ins, data sets and study files. Standard library
only.
"""

import getpass
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fusionbench.records.cell import CellRecord

# A tag, a comment or an address in angle brackets starts so; `<0.001` starts none of them.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# Reports link to their own figures only.
_LINK = re.compile(r"\]\((?!figures/[\w.-]+\))")
_REFERENCE = re.compile(r"^(\s*(?:[-*>]\s+)*)\[([^\]\n]*)\]:", re.MULTILINE)
_FORMULA = ("=", "+", "-", "@", "\t", "\n")
# Control characters, and marks that change the order in which letters are shown.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_TRACE = re.compile(r'(File ")[^"\n]*?([^/"\n]+/[^/"\n]+")')
_TWINS = {
    "±": "+/-", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": "...", "≥": ">=", "≤": "<=",
    "→": "->", "†": "+", "²": "^2", "“": '"', "”": '"', "‘": "'", "’": "'", "\xa0": " ",
}  # fmt: skip


def visible(text: str) -> str:
    r"""Control characters as Python writes them: an escape sequence starts with `\x1b`.

    Line feeds and tabs stay.
    """
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def encodable(text: str, encoding: str) -> str:
    """The text in letters that the encoding has: `+/-` for `±`, `?` where there is no twin."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        pass
    except LookupError:
        return encodable(text, "ascii")
    else:
        return text
    return "".join(_letter(one, encoding) for one in text)


def _letter(one: str, encoding: str) -> str:
    for form in (one, _TWINS.get(one, "?")):
        try:
            form.encode(encoding)
        except UnicodeEncodeError:
            continue
        return form
    return "?"


def one_line(text: str) -> str:
    """The text on one line, with visible control characters: it starts no part of a page."""
    return visible(" ".join(text.split()))


def markdown_cell(text: str) -> str:
    """The text of a cell of a Markdown table: one line, and no `|` that ends it."""
    return visible(" ".join(text.splitlines())).replace("|", "\\|")


def markdown_page(text: str) -> str:
    """A whole Markdown file without HTML, with links to its own figures only.

    For every Markdown file, whatever its parts were made of.
    """
    text = _LINK.sub("]\\(", _TAG.sub("&lt;", visible(text)))
    return _REFERENCE.sub(r"\1[\2\\]:", text)


def spreadsheet_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula or a new row; numbers stay numbers."""
    text = visible(text)
    if text.startswith(_FORMULA) and not _is_number(text) and text not in ("-", "+"):
        return f"'{text}"
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text


def file_only(source: str) -> str:
    """The name of a file for its path; any other text unchanged."""
    return Path(source).name if Path(source).is_absolute() else source


def checkpoint_name(name: str) -> str:
    """`hf:clip` for `hf:/home/someone/clip`; any other encoder's name unchanged."""
    library, _, folder = name.partition(":")
    return f"{library}:{Path(folder).name}" if folder.startswith(("/", "~")) else name


def impersonal(text: str) -> str:
    """The text without the user's folders and login name.

    Files of a traceback keep their last folder, the working folder becomes `.`, the home folder
    `~`, and the login name in another path `USER`.
    """
    text = _TRACE.sub(r"\1\2", text)
    for folder, short in _places():
        text = _shorter(text, folder, short)
    name = _login()
    return re.sub(rf"/{re.escape(name)}(?=/)", "/USER", text) if name else text


def from_home(text: str) -> str:
    """The text with `~` for the home folder: paths that are read again on this machine."""
    home = _home()
    return text if home in (None, Path("/")) else _shorter(text, str(home), "~")


def without_user(record: CellRecord) -> CellRecord:
    """The record without folders and names of the user; nothing of it enters an id."""
    made_by = {
        key: file_only(value) if isinstance(value, str) and key in _MADE_BY else _deep(value)
        for key, value in record.provenance.items()
    }
    return replace(
        record,
        reason=impersonal(record.reason),
        notes=tuple(map(impersonal, record.notes)),
        provenance=made_by,
    )


_MADE_BY = ("method", "task", "encoder")
"""Parts of the provenance that are a path for a plug-in; `plugin_files` has the files' hashes."""


def _deep(value: Any) -> Any:
    if isinstance(value, str):
        return impersonal(value)
    if isinstance(value, Mapping):
        return {key: _deep(one) for key, one in value.items()}
    return [_deep(one) for one in value] if isinstance(value, list | tuple) else value


def _shorter(text: str, folder: str, short: str) -> str:
    """`folder` replaced where it is a whole path or the start of one."""
    return re.sub(rf"(?<![\w.-]){re.escape(folder)}(?=/|[^\w.-]|$)", short, text)


def _places() -> list[tuple[str, str]]:
    """Folders that name a user, the longest first."""
    found: dict[str, str] = {}
    for folder, short in ((_home(), "~"), (Path.cwd(), ".")):
        found |= {} if folder is None else {str(folder): short, str(folder.resolve()): short}
    return sorted(((one, short) for one, short in found.items() if len(one) > 1),
                  key=lambda one: -len(one[0]))  # fmt: skip


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


@cache
def _login() -> str:
    """The login name; empty where the account has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
