"""Figures inside the page: ids of their own, house colours that follow the page's theme."""

import re
from collections.abc import Mapping

from fusionbench.report.style import DARK

_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href|href)="#([^"]+)"|url\(#([^)]+)\)')
_COORDINATES = re.compile(r'\b(d|x|y)="([^"]*)"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COLOR = re.compile("|".join(map(re.escape, DARK)), re.IGNORECASE)


def inline(svg: str, name: str, title: str) -> str:
    """The `<svg>` element of a file, for a page that holds several; `title` is read aloud."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = _ID.sub(lambda found: f'id="{name}-{found[1]}"', body)
    body = _REFERENCE.sub(lambda found: _referring(found, name), body)
    body = _COORDINATES.sub(lambda found: f'{found[1]}="{_rounded(found[2])}"', body)
    body = _COLOR.sub(lambda found: f"var({variable(found[0])})", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def variable(color: str) -> str:
    """The page's name for a colour."""
    return f"--f{color.lower().removeprefix('#')}"


def theme(dark: bool) -> Mapping[str, str]:
    """What each colour of the figures is on a light or a dark page."""
    return {variable(light): other if dark else light for light, other in DARK.items()}


def _referring(found: re.Match[str], name: str) -> str:
    return f'href="#{name}-{found[2]}"' if found[1] else f"url(#{name}-{found[3]})"


def _rounded(text: str) -> str:
    """A hundredth of a point is less than any screen shows, and a third of the file."""
    return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", text)
