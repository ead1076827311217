"""All figures of a report into its folder, with a note of what was drawn by which versions."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem
from fusionbench.records.files import write_atomic
from fusionbench.records.parallel import in_order
from fusionbench.records.probes import probe_maps
from fusionbench.report.figures.cost import draw_cost
from fusionbench.report.figures.curves import draw_learning, draw_profile
from fusionbench.report.figures.differences import draw_suite, draw_tasks
from fusionbench.report.figures.layers import draw_layers, draw_traces
from fusionbench.report.figures.panels import FigureData
from fusionbench.report.figures.ranks import draw_ranks
from fusionbench.report.figures.scores import draw_heatmap, draw_runs
from fusionbench.report.figures.style import Drawing, Drawn, files, house_style
from fusionbench.report.page import Material

Drawer = Callable[[FigureData], Drawing | None]
_DRAWERS: Sequence[Drawer] = (
    draw_suite, draw_heatmap, draw_tasks, draw_cost, draw_runs, draw_profile, draw_ranks,
    draw_layers, draw_traces, draw_learning,
)  # fmt: skip
_DETAILS = (draw_tasks, draw_runs, draw_learning)
MOST_IN_FULL = 3
"""With more conditions in one folder, details are drawn for the first one only."""
_LEFT_OUT = f"""\
 The folder holds more than {MOST_IN_FULL} conditions: differences task by task, scores run by
run and learning curves are drawn for the first one only."""
_NOTE = "figures.json"


def write_figures(report: Material, folder: Path) -> list[Drawn]:
    """Draw everything that the records allow; return the figures, condition by condition.

    Figures of an earlier report in `folder` that are not drawn again are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(_noted(folder))
    drawn: list[Drawn] = []
    _import_libraries()
    for rendered in in_order([partial(_rendered, *one) for one in _planned(report)]):
        if rendered is None:
            continue
        figure, contents = rendered
        stem = folder / _free(figure.stem.name, {one.stem.name for one in drawn})
        for ending, content in contents.items():
            write_atomic(stem.with_suffix(ending), content)
        if ".png" not in contents:
            # An earlier version wrote one for every figure.
            stem.with_suffix(".png").unlink(missing_ok=True)
        drawn.append(replace(figure, stem=stem))
    for name in sorted(before - {one.stem.name for one in drawn}):
        for ending in (".svg", ".png", ".csv"):
            (folder / name).with_suffix(ending).unlink(missing_ok=True)
    _write_note(folder, drawn)
    return drawn


def drawings(report: Material) -> Iterator[tuple[str, Drawing]]:
    """(condition, figure) of the suite, then of planted tasks, which enter no other figure."""
    for condition, draw in _planned(report):
        drawing = draw()
        if drawing is not None:
            yield condition, drawing


def _planned(report: Material) -> Iterator[tuple[str, Callable[[], Drawing | None]]]:
    """The condition of each figure, and a function that draws it or returns None."""
    many = len(report.analyses) > MOST_IN_FULL
    for number, data in enumerate(figure_data(report)):
        brief = many and number > 0
        for draw in [one for one in _DRAWERS if not (brief and one in _DETAILS)]:
            left_out = _LEFT_OUT if brief and draw in (draw_suite, draw_heatmap) else ""
            yield data.table.condition.title, partial(_drawing, draw, data, left_out)
    for table in report.planted:
        data = FigureData(table=table, results=report.results)
        yield table.condition.title, partial(draw_runs, data, "planted")


def _drawing(draw: Drawer, data: FigureData, left_out: str) -> Drawing | None:
    found = draw(data)
    return found and replace(found, reading=found.reading + left_out)


def _rendered(
    condition: str, draw: Callable[[], Drawing | None]
) -> tuple[Drawn, dict[str, bytes]] | None:
    """A figure, with its name as stem, and its files; made in a process of its own."""
    with house_style():
        drawing = draw()
        if drawing is None:
            return None
        reading = " ".join(drawing.reading.split())
        stem = Path(drawing.name)
        drawn = Drawn(stem=stem, title=drawing.title, reading=reading, condition=condition)
        return drawn, files(drawing)


def _import_libraries() -> None:
    """Import what all figures need before the process is forked."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import seaborn  # noqa: F401


def figure_data(report: Material) -> Iterator[FigureData]:
    """The input of the figures of each condition of the suite."""
    problems: list[Problem] = []
    probes = list(probe_maps(report.results.store.folder, problems))
    for analysis in report.analyses:
        plan, condition = analysis.plan, analysis.table.condition
        yield FigureData(
            table=analysis.table,
            results=report.results,
            baseline=plan.baseline,
            contrasts=analysis.rows,
            planned=[contrast.method for contrast in plan.contrasts],
            margins=(100 * plan.suite_margin, 100 * plan.task_margin),
            profiles=report.profiles,
            probes=[one for one in probes if one.weights == condition.weights],
        )


def _free(name: str, taken: set[str]) -> str:
    """`name`, or `name-2` if that is taken, and so on."""
    numbered = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def _noted(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((folder / _NOTE).read_text(encoding="utf-8"))["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_note(folder: Path, drawn: Sequence[Drawn]) -> None:
    """Titles and readings, and the versions: only equal versions give equal bytes."""
    import matplotlib
    import seaborn
    from matplotlib import ft2font

    versions = {
        "matplotlib": matplotlib.__version__,
        "seaborn": seaborn.__version__,
        "freetype": ft2font.__freetype_version__,
    }
    figures = {
        one.stem.name: {"title": one.title, "reading": one.reading, "condition": one.condition}
        for one in drawn
    }
    text = json.dumps({"versions": versions, "figures": figures}, indent=1)
    write_atomic(folder / _NOTE, f"{text}\n".encode())
