"""One look for all figures: a palette that the colour-blind can tell apart, no dates, fixed ids."""

from collections.abc import Mapping
from typing import Any

# Okabe and Ito's palette.
ON_FEATURES = "#0072B2"
IN_ENCODER = "#D55E00"
GUIDE = "#8C8C8C"
GRID = "#E6E6E6"

RC: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "ytick.left": False,
    "xtick.major.size": 2.5,
    "figure.dpi": 130,
    "savefig.dpi": 130,
    # Hinted text is wider at one resolution than at another, and names would be cut.
    "text.hinting": "none",
    # Element ids are hashes; without a fixed salt every file would differ.
    "svg.hashsalt": "fusionbench",
}
