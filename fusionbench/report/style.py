"""One look for all figures: a palette that the colour-blind can tell apart, no dates, fixed ids.

Nothing is told by colour alone: series differ in marker and line too, so that a print in grey says
the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
