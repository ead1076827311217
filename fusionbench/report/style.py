"""One look for all figures: a palette that the colour-blind can tell apart, no dates, fixed ids."""

from collections.abc import Mapping
from typing import Any

# Okabe and Ito's palette.
ON_FEATURES = "#0072B2"
IN_ENCODER = "#D55E00"
GUIDE = "#8C8C8C"

RC: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "ytick.left": False,
    "xtick.major.size": 2.5,
    "savefig.dpi": 130,
    # Element ids are hashes; without a fixed salt every file would differ.
    "svg.hashsalt": "fusionbench",
}
