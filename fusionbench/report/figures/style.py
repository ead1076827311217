"""Colours, line styles and rc settings of all figures, and their SVG, PNG and CSV files.

Series differ in colour, marker and line, so that they stay distinct in greyscale. Equal input
gives equal bytes: no dates, fixed element ids, a fixed layout.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionbench.records.files import write_atomic
from fusionbench.records.text import spreadsheet_cell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

INK = "#1a1a1a"
PAPER = "#ffffff"
GUIDE = "#8c8c8c"
GRID = "#e6e6e6"
# Okabe and Ito's palette without its yellow, which has too little contrast on white.
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
SKY, ORANGE, PURPLE = "#56b4e9", "#e69f00", "#cc79a7"
ON_FEATURES, IN_ENCODER = BLUE, VERMILLION

DARK: Mapping[str, str] = {
    INK: "#e6e6e6",
    PAPER: "#16191d",
    GUIDE: "#8f959c",
    GRID: "#31363c",
    BLUE: "#5ab0ea",
    VERMILLION: "#ff9457",
    GREEN: "#35c79a",
    SKY: "#8fd0f7",
    ORANGE: "#f2b93b",
    PURPLE: "#e6a3c8",
}
"""Colour on a light page -> colour on a dark page; the HTML report swaps them in the SVG text."""

CELLS = "cividis"
"""Colour map of heat maps: monotone in lightness."""
ON_DARK_CELL, ON_LIGHT_CELL = "#fefefe", "#010101"
"""Text on heat map cells. Not in `DARK`, because the cells keep their colours on a dark page."""

BITMAPS = ("differences",)
"""Figures with a `.png` too, for pages and slides that show no SVG."""

SMALL = 6.0
"""Font size of notes inside panels, in points."""

RC: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    # The default position; finding it automatically measures all ticks again.
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
    "xtick.major.size": 2.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.dpi": 130,
    "savefig.dpi": 130,
    # The width of hinted text depends on the resolution, so labels would be cut in one format.
    "text.hinting": "none",
    # Element ids are hashes; without a fixed salt every file would differ.
    "svg.hashsalt": "fusionbench",
}

_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, BLUE, VERMILLION, GREEN)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", "p", "h")
_DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (9, 2)) * 2
LOOKS: Sequence[Mapping[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": (0, dashes) if dashes else "-"}
    for color, marker, dashes in zip(_COLORS, _MARKERS, _DASHES, strict=True)
]
"""Of ten named series."""


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the rc settings; a figure must be both made and saved inside."""
    from matplotlib import rc_context, rcdefaults, rcParams

    with rc_context():
        # A user's own matplotlibrc must not change a byte.
        rcdefaults()
        rcParams.update(dict(RC))
        yield


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure in memory."""

    name: str
    """Stem of its files."""
    title: str
    reading: str
    """How to read it, and what it does not show."""
    figure: "Figure"
    rows: "pd.DataFrame"
    """The data of all marks."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure on disk: `<stem>.svg` and, with its data, `<stem>.csv`."""

    stem: Path
    title: str
    reading: str
    condition: str
    """Title of the condition whose scores it shows."""

    @property
    def svg(self) -> Path:
        """The vector graphic for print and for the HTML report."""
        return self.stem.with_suffix(".svg")


def save(drawing: Drawing, stem: Path) -> None:
    """Write the files of a drawing; call it inside `house_style`."""
    for ending, content in files(drawing).items():
        write_atomic(stem.with_suffix(ending), content)


def files(drawing: Drawing) -> dict[str, bytes]:
    """Contents of the `.svg` and `.csv` file, of some also `.png`; call it in `house_style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure = drawing.figure
    bitmap = FigureCanvasAgg(figure)
    _lay_out(figure)
    # Figure.savefig would lay out and draw everything twice for each file.
    svg = BytesIO()
    # matplotlib leaves the printers untyped.
    print_svg: Callable[..., None] = FigureCanvasSVG(figure).print_svg
    print_svg(svg, metadata={"Date": None, "Creator": None})
    found = {".svg": svg.getvalue(), ".csv": _csv(drawing.rows).encode()}
    if drawing.name in BITMAPS:
        png = BytesIO()
        print_png: Callable[..., None] = bitmap.print_png
        print_png(png, metadata={"Software": None})
        found[".png"] = png.getvalue()
    return found


def _lay_out(figure: "Figure") -> None:
    """Run the layout engine once, at the resolution of the bitmap, and fix its result.

    The solver's last bits depend on memory addresses, and element ids of the SVG depend on the
    bits, so positions are rounded.
    """
    layout = figure.get_layout_engine()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            # Placing an empty label automatically would measure all ticks again.
            axis.set_label_coords(0.5, 0.5)
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = np.round(axes.get_position(original=True).bounds, 6)
        axes.set_position((float(left), float(bottom), float(width), float(height)))


def _csv(rows: "pd.DataFrame") -> str:
    """Six significant digits; NaN is empty; flags are `true` and `false`; no formulas."""
    names = map(str, rows.select_dtypes("bool"))
    flags: dict[str, Any] = {name: np.where(rows[name], "true", "false") for name in names}
    texts = map(str, rows.select_dtypes(["object", "str"]))
    words: dict[str, Any] = {name: rows[name].map(_safe) for name in texts}
    safe = rows.assign(**words, **flags)
    return safe.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _safe(value: object) -> object:
    return spreadsheet_cell(value) if isinstance(value, str) else value
