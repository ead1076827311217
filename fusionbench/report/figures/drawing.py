"""A figure with its data and the sentence that says how to read it; the same bytes every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.records.files import write_atomic
from fusionbench.report.tables import Row, comma_separated

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
