"""All figures of a report into its folder, with a note on what drew them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem
from fusionbench.records.files import write_atomic
from fusionbench.records.parallel import in_order
from fusionbench.records.probes import probe_maps
from fusionbench.report.contrast_table import contrast_page
from fusionbench.report.figures import cost, differences, layers, ranks, scores
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.style import Drawing, Drawn, files, house_style
from fusionbench.report.page import Material as Report

Drawer = Callable[[Material], Drawing | None]
_DRAWERS: Sequence[Drawer] = (
    scores.draw_heatmap,
    differences.draw_suite,
    differences.draw_tasks,
    cost.draw,
    scores.draw_scores,
    ranks.draw_profile,
    ranks.draw_ranks,
    layers.draw_layers,
    layers.draw_instruments,
    scores.draw_learning,
)
_DETAILS = (scores.draw_scores, scores.draw_learning)
MOST_IN_FULL = 3
"""Conditions of one folder that have all figures."""
_LEFT_OUT = f"""\
 The folder holds more than {MOST_IN_FULL} conditions: scores run by run and learning curves are
drawn for the first only, and for all others left to the records."""
_NOTE = "figures.json"


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    """A drawing as it goes to the disk: figures are drawn in several processes, written by one."""

    drawn: Drawn
    """With the stem that the figure asks for."""
    files: Mapping[str, bytes]


def write_figures(report: Report, folder: Path) -> list[Drawn]:
    """Draw everything that the records allow and give what was drawn, condition by condition.

    What an earlier report drew into `folder` and this one does not is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(_noted(folder))
    drawn: list[Drawn] = []
    _warm()
    for rendered in in_order([partial(_rendered, *one) for one in _planned(report)]):
        if rendered is None:
            continue
        stem = folder / _free(rendered.drawn.stem.name, {one.stem.name for one in drawn})
        for ending, content in rendered.files.items():
            write_atomic(stem.with_suffix(ending), content)
        drawn.append(replace(rendered.drawn, stem=stem))
    for name in sorted(before - {one.stem.name for one in drawn}):
        for ending in (".svg", ".png", ".csv"):
            (folder / name).with_suffix(ending).unlink(missing_ok=True)
    _note(folder, drawn)
    return drawn


def drawings(report: Report) -> Iterator[tuple[str, Drawing]]:
    """(condition, figure): those of the suite, then the planted tasks, which enter no other."""
    for condition, draw in _planned(report):
        drawing = draw()
        if drawing is not None:
            yield condition, drawing


def _planned(report: Report) -> Iterator[tuple[str, Callable[[], Drawing | None]]]:
    """The condition of each figure, and what draws it if the records allow."""
    many = len(report.analyses) > MOST_IN_FULL
    for number, material in enumerate(materials(report)):
        brief = many and number > 0
        for draw in [one for one in _DRAWERS if not (brief and one in _DETAILS)]:
            left_out = _LEFT_OUT if brief and draw is scores.draw_heatmap else ""
            yield material.table.condition.title, partial(_drawing, draw, material, left_out)
    for table in report.planted:
        material = Material(table=table, results=report.results)
        yield table.condition.title, partial(scores.draw_scores, material, "planted")


def _drawing(draw: Drawer, material: Material, left_out: str) -> Drawing | None:
    found = draw(material)
    return found and replace(found, reading=found.reading + left_out)


def _rendered(condition: str, draw: Callable[[], Drawing | None]) -> _Rendered | None:
    with house_style():
        drawing = draw()
        if drawing is None:
            return None
        drawn = Drawn(
            stem=Path(drawing.name), title=drawing.title,
            reading=" ".join(drawing.reading.split()), condition=condition,
        )  # fmt: skip
        return _Rendered(drawn=drawn, files=files(drawing))


def _warm() -> None:
    """Load what all figures need before processes are copied."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401


def materials(report: Report) -> Iterator[Material]:
    """What the figures of each condition of the suite are drawn from."""
    problems: list[Problem] = []
    probes = list(probe_maps(report.results.store.folder, problems))
    for analysis in report.analyses:
        plan, condition = analysis.plan, analysis.table.condition
        yield Material(
            table=analysis.table,
            results=report.results,
            baseline=plan.baseline,
            planned=[contrast.method for contrast in plan.contrasts],
            margins=(100 * plan.suite_margin, 100 * plan.task_margin),
            contrasts=contrast_page((analysis,)).rows,
            profiles=[
                one for one in report.profiles if one.conditions.encoder == condition.encoder
            ],
            probes=[one for one in probes if one.weights == condition.weights],
        )


def _free(name: str, taken: set[str]) -> str:
    """`name`, or for the second table `name-2`."""
    numbered = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def _noted(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((folder / _NOTE).read_text(encoding="utf-8"))["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _note(folder: Path, drawn: Sequence[Drawn]) -> None:
    """What was drawn, and by which versions: only the same ones give the same bytes."""
    import matplotlib
    from matplotlib import ft2font

    versions = {"matplotlib": matplotlib.__version__, "freetype": ft2font.__freetype_version__}
    figures = {
        one.stem.name: {"title": one.title, "reading": one.reading, "condition": one.condition}
        for one in drawn
    }
    text = json.dumps({"versions": versions, "figures": figures}, indent=1)
    write_atomic(folder / _NOTE, f"{text}\n".encode())
