"""One look for all figures: a palette that the colour-blind can tell apart, no dates, fixed ids.

Nothing is told by colour alone: series differ in marker and line too, so that a print in grey says
the same.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Real

from fusionbench.records.files import write_atomic
from fusionbench.report.tables import Row, comma_separated

INK = "#1a1a1a"
PAPER = "#ffffff"
GUIDE = "#8c8c8c"
GRID = "#e6e6e6"
# Okabe and Ito's palette without its yellow, which is lost on white.
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
"""What each colour becomes on a dark page."""

CELLS = "cividis"
"""The colour map of heat maps: it rises in lightness only."""
ON_DARK_CELL, ON_LIGHT_CELL = "#fefefe", "#010101"
"""Text on a cell, which keeps its colour on every page and so must its text."""

FONT = 7.5
SMALL = 6.0

RC: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    # Where it would come to stand anyhow; looking for it means measuring all ticks again.
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
    "hatch.color": GUIDE,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.dpi": 130,
    "savefig.dpi": 130,
    # Hinted text is wider at one resolution than at another, and names would be cut.
    "text.hinting": "none",
    # Element ids are hashes; without a fixed salt every file would differ.
    "svg.hashsalt": "fusionbench",
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """How one series is drawn."""

    color: str
    line: Any
    marker: str


_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
_LINES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def series(position: int) -> Series:
    """The look of the series at a position: colour, line and marker all change at once."""
    return Series(
        color=_COLORS[position % len(_COLORS)],
        line=_LINES[position % len(_LINES)],
        marker=_MARKERS[position % len(_MARKERS)],
    )


@contextmanager
def house_style() -> Iterator[None]:
    """The look, for figures that are made and saved inside."""
    from matplotlib import rc_context, rcdefaults, rcParams

    with rc_context():
        # A user's own matplotlibrc must not change a byte.
        rcdefaults()
        rcParams.update(dict(RC))
        yield


# A figure with its data and the sentence that says how to read it; the same bytes every time.


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a module of this package draws."""

    name: str
    """The stem of its files."""
    title: str
    reading: str
    """How to read it, and what it may not be read as."""
    figure: "Figure"
    data: Sequence[Row]
    """All that is shown, one mark or more per row, for programs."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure on disk: `<stem>.svg`, `<stem>.png` and, with its data, `<stem>.csv`."""

    stem: Path
    title: str
    reading: str
    condition: str
    """Of which table it was drawn."""

    @property
    def svg(self) -> Path:
        """The drawing to print or to put into a page."""
        return self.stem.with_suffix(".svg")


def save(drawing: Drawing, stem: Path) -> None:
    """Write the three files of a drawing; call it in the house style."""
    for ending, content in files(drawing).items():
        write_atomic(stem.with_suffix(ending), content)


def files(drawing: Drawing) -> dict[str, bytes]:
    """The drawing as `.png`, as `.svg` and its data as `.csv`; call it in the house style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure = drawing.figure
    bitmap = FigureCanvasAgg(figure)
    # Panels are laid out once, not once per file, and at the resolution of the bitmap.
    layout = figure.get_layout_engine()
    _leave(figure)
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")
    _settle(figure)
    # Figure.savefig would draw everything twice for each file.
    png, svg = BytesIO(), BytesIO()
    # matplotlib leaves the printers without types.
    print_png: Callable[..., None] = bitmap.print_png
    print_png(png, metadata={"Software": None})
    print_svg: Callable[..., None] = FigureCanvasSVG(figure).print_svg
    print_svg(svg, metadata={"Date": None, "Creator": None})
    data = comma_separated(drawing.data).encode()
    return {".png": png.getvalue(), ".svg": svg.getvalue(), ".csv": data}


def _leave(figure: "Figure") -> None:
    """Look for no place for names of axes that have none: each would measure all ticks again."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0.5, 0.5)


def _settle(figure: "Figure") -> None:
    """Round where the panels stand.

    The solver's last bits depend on where objects lie in memory, and ids in the file on the bits.
    """
    for axes in figure.axes:
        place = axes.get_position(original=True)
        left, bottom, width, height = (round(edge, 6) for edge in place.bounds)
        axes.set_position((left, bottom, width, height))


# Legends above a figure, where no panel can be hidden by them.


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_INCHES_PER_LETTER = 0.062
_INCHES_PER_LINE = 0.16


def legend(figure: "Figure", handles: Sequence["Line2D"]) -> None:
    """A legend of as many columns as the figure is wide for; the figure grows by its lines."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    fit = int((figure.get_figwidth() - 0.3) / (0.55 + longest * _INCHES_PER_LETTER))
    columns = max(1, min(fit, len(handles)))
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + _INCHES_PER_LINE * lines)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns)


def series_handles(names: Sequence[str], others: str = "all others") -> list["Line2D"]:
    """Names of the series in their order, and the grey rest."""
    from matplotlib.lines import Line2D

    looks = [series(position) for position in range(len(names))]
    handles = [
        Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker, markersize=4,
               linewidth=1.2, label=name)
        for look, name in zip(looks, names, strict=True)
    ]  # fmt: skip
    rest = [Line2D([], [], color=GUIDE, linewidth=0.5, label=others)] if others else []
    return [*handles, *rest]


def where_handles() -> list["Line2D"]:
    """The two kinds of methods."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=ON_FEATURES, marker="o", markersize=4, linestyle="",
               label="on cached features"),
        Line2D([], [], color=IN_ENCODER, marker="^", markersize=4, linestyle="",
               label="in the encoder"),
    ]  # fmt: skip


# Names beside marks that never overlap, however many there are.


if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_INCHES = 0.125
"""Height that a line of text needs."""
_PAD_POINTS = 14.0


def wrapped(name: str, letters: int = 21) -> str:
    """A long name over several lines, broken after `_`, `-` or a space where that is possible."""
    lines = [""]
    for part in re.findall(r"[^_\- ]*[_\- ]*", name):
        while len(part) > letters:
            lines, part = [*lines, part[:letters]], part[letters:]
        if len(lines[-1]) + len(part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line)


def spread(wanted: Float[np.ndarray, " label"], gap: float) -> Float[np.ndarray, " label"]:
    """Places in [0, 1], at least `gap` apart and as near to the wanted ones as can be.

    The order is kept, ties go by position. Least squares under the gaps is isotonic regression
    of `wanted - rank * gap` (pool adjacent violators). ValueError if they cannot fit.
    """
    count = len(wanted)
    if count and (count - 1) * gap > 1 + 1e-9:
        raise ValueError(f"{count} labels with a gap of {gap:g} do not fit into 1")
    order = np.argsort(wanted, kind="stable")
    ranks = np.arange(count) * gap
    slack = 1 - (count - 1) * gap
    found = np.empty(count)
    found[order] = np.clip(_isotonic(wanted[order] - ranks), 0, max(slack, 0)) + ranks
    return found


def _isotonic(values: Float[np.ndarray, " label"]) -> Float[np.ndarray, " label"]:
    """The non-decreasing sequence nearest to the values."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        blocks.append((mean, size))
    return np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])


def label_column(
    axes: "Axes", heights: Float[np.ndarray, " label"], texts: Sequence[str], inches: float
) -> None:
    """Names right of the axes, each led to its height; `inches` is the height of the axes.

    The names are tick labels of a second axis, so that the layout makes room for them.
    """
    low, high = axes.get_ylim()
    at = (heights - low) / (high - low)
    slots = spread(at, min(LINE_INCHES / inches, 1 / max(len(at) - 1, 1)))
    beside = axes.twinx()
    beside.set_ylim(0, 1)
    beside.set_yticks(slots, texts)
    beside.tick_params(axis="y", right=False, pad=_PAD_POINTS)
    for spine in beside.spines.values():
        spine.set_visible(False)
    for start, end in zip(at, slots, strict=True):
        _leader(axes, float(start), float(end))


def _leader(axes: "Axes", start: float, end: float) -> None:
    """A thin line from the edge of the axes to a label."""
    from matplotlib.transforms import ScaledTranslation

    right = ScaledTranslation((_PAD_POINTS - 2) / 72, 0, axes.figure.dpi_scale_trans)
    axes.annotate(
        "", xy=(1, start), xytext=(1, end), xycoords="axes fraction",
        textcoords=axes.transAxes + right, annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": GUIDE, "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip


# Many thin lines behind the ones that are read: one artist, however many there are.


if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = tuple[Real[np.ndarray, " point"], Float[np.ndarray, " point"]]
"""Where its points lie, across and up."""


def thin(panel: "Axes", lines: Iterable[Line], *, width: float, alpha: float) -> None:
    """Draw grey lines; NaN breaks one. A line of its own for each takes ten times as long."""
    from matplotlib.collections import LineCollection

    segments = [np.column_stack(line) for line in lines]
    if segments:
        panel.add_collection(LineCollection(segments, colors=GUIDE, linewidths=width, alpha=alpha))
