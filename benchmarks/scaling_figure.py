"""Draw `scaling.png` from the measurements of `scaling.py`: one panel an axis, with its floor.

python benchmarks/scaling_figure.py
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from targets import measured

HERE = Path(__file__).parent
FIGURE = "scaling.png"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One axis of `scaling.py`; the floor is what no way of doing the work can go below."""

    axis: str
    plain: str
    ours: str
    floor: str


PANELS = (
    Panel(axis="tokens", plain="", ours="step of {}", floor="the bare encoder"),
    Panel(axis="blocks", plain="", ours="step of {}", floor="the bare encoder"),
    Panel(axis="seeds", plain="a loop", ours="one pass", floor="one seed"),
    Panel(axis="methods", plain="for each method", ours="once for all", floor="one encoding"),
    Panel(axis="cells", plain="nothing done", ours="nine in ten done", floor="1,000 cells"),
)
Line = tuple[list[float], list[float]]


def lines(rows: Sequence[dict], panel: Panel) -> dict[str, Line]:
    """The curves of a panel: points along its axis and what was measured, by label."""
    found: dict[str, Line] = {}

    def add(label: str, at: float, value: float) -> None:
        points, values = found.setdefault(label, ([], []))
        points.append(at)
        values.append(value)

    for row in rows:
        at = float(re.search(rf"\b{panel.axis}=(\d+)", row["target"])[1])
        add(panel.ours.format(row["note"]), at, row["ours"])
        if panel.plain:
            add(panel.plain, at, row["plain"])
        elif row["note"] == rows[0]["note"]:
            add(panel.floor, at, row["plain"])
    if panel.plain:
        least = min(rows[0]["plain"], rows[0]["ours"])
        found[panel.floor] = (found[panel.plain][0], [least] * len(found[panel.plain][0]))
    return found


def draw(results: Path, figure: Path) -> None:
    """Write the figure of one folder of results; nothing where an axis was not measured."""
    drawn = {
        panel: values
        for panel in PANELS
        for values in reversed(measured(results))
        if values["script"] == f"scaling-{panel.axis}"
    }
    if not drawn:
        return
    shape, axes = plt.subplots(1, len(drawn), figsize=(3.1 * len(drawn), 3.2))
    for place, (panel, values) in zip([axes] if len(drawn) == 1 else axes, drawn.items(),
                                      strict=True):  # fmt: skip
        _panel(place, panel, values)
    shape.tight_layout()
    shape.savefig(figure, dpi=110)
    plt.close(shape)


def _panel(place: Axes, panel: Panel, values: dict) -> None:
    rows = values["rows"]
    for label, (points, heights) in lines(rows, panel).items():
        style = {"linestyle": ":", "color": "0.45"} if label == panel.floor else {"marker": "o"}
        place.plot(points, heights, label=label, markersize=3, **style)
    place.set(xscale="log", yscale="log", xlabel=panel.axis, ylabel=rows[0]["unit"])
    place.set_xticks(points, [f"{at:,.0f}" for at in points])
    # Labels between powers of ten only where there is room for no more than one of these.
    low, high = place.get_ylim()
    place.yaxis.set_major_formatter("{x:g}")
    place.yaxis.set_minor_formatter("{x:g}" if high < 5 * low else "")
    place.tick_params(which="both", labelsize=7)
    place.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    place.set_title(f"{panel.axis}, {values['device']}", fontsize=9)
    place.legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    draw(HERE / "results", HERE / FIGURE)
