"""Legends above a figure, where no panel can be hidden by them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionbench.report.style import GUIDE, IN_ENCODER, ON_FEATURES, series

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
