"""All figures of a report into its folder, with a note on what drew them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench.cache import write_atomic
from fusionbench.history import Run
from fusionbench.report.figures import (
    cost,
    forest,
    heatmap,
    instruments,
    layers,
    learning,
    profile,
    ranks,
    scores,
)
from fusionbench.report.figures.drawing import Drawing, Drawn, save
from fusionbench.report.figures.material import Material, objects
from fusionbench.report.figures.profiles import encoder_of
from fusionbench.report.style import house_style
from fusionbench.report.tables import Row
from fusionbench.scores import ScoreTable
from fusionbench.store import Store

_DRAWERS: Sequence[Callable[[Material], Drawing | None]] = (
    heatmap.draw,
    forest.draw_suite,
    forest.draw_tasks,
    cost.draw,
    scores.draw,
    profile.draw,
    ranks.draw,
    layers.draw,
    instruments.draw,
    learning.draw,
)
_NOTE = "figures.json"


def write_figures(
    store: Store, tables: Sequence[ScoreTable], folder: Path, contrasts: Sequence[Row] = ()
) -> list[Drawn]:
    """Draw everything that the records allow and give what was drawn, condition by condition.

    `contrasts` are the rows of `tables/contrasts.csv`. What an earlier report drew into `folder`
    and this one does not is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(_noted(folder))
    drawn: list[Drawn] = []
    with house_style():
        for material in _materials(store, tables, contrasts):
            drawn += _condition(material, folder, {one.stem.name for one in drawn})
    for stem in sorted(before - {one.stem.name for one in drawn}):
        for ending in (".svg", ".png", ".csv"):
            (folder / stem).with_suffix(ending).unlink(missing_ok=True)
    _note(folder, drawn)
    return drawn


def _materials(
    store: Store, tables: Sequence[ScoreTable], contrasts: Sequence[Row]
) -> Iterator[Material]:
    planned = next(reversed(store.history.runs()), None)
    profiles = objects(store.folder / "profiles")
    probes = objects(store.folder / "probes")
    for table in tables:
        encoder = table.condition.encoder
        yield Material(
            table=table,
            store=store,
            baseline=str(planned.study.get("baseline", "")) if planned else "",
            planned=_planned(planned),
            margins=_margins(planned),
            contrasts=[row for row in contrasts if _of(row, table)],
            profiles=[one for one in profiles if encoder_of(one) in ("", encoder)],
            probes=[one for one in probes if one.get("encoder", encoder) == encoder],
        )


def _planned(run: Run | None) -> list[str]:
    """Methods of the study's planned contrasts."""
    contrasts = run.study.get("contrasts", ()) if run else ()
    return [str(one["method"]) for one in contrasts if "method" in one]


def _margins(run: Run | None) -> tuple[float, float]:
    """As the study declared them, in points."""
    declared = run.study.get("margins", {}) if run else {}
    return float(declared.get("suite", 1.0)), float(declared.get("task", 2.0))


def _of(row: Row, table: ScoreTable) -> bool:
    """Whether a contrast belongs to a table; rows that name no condition belong to all."""
    condition = table.condition
    facts = {"encoder": condition.encoder, "track": condition.track,
             "steps": str(condition.budget.steps)}  # fmt: skip
    return all(row.get(key, value) == value for key, value in facts.items())


def _condition(material: Material, folder: Path, taken: set[str]) -> Iterator[Drawn]:
    """The figures of one table, suite tasks and planted ones apart."""
    for drawing in _drawings(material):
        stem = _free(drawing.name, taken)
        save(drawing, folder / stem)
        yield Drawn(
            stem=folder / stem,
            title=drawing.title,
            reading=" ".join(drawing.reading.split()),
            condition=material.table.condition.title,
        )


def _drawings(material: Material) -> Iterator[Drawing]:
    suite = material.of(material.table.suite)
    for draw in _DRAWERS if suite.table.tasks else ():
        drawing = draw(suite)
        if drawing is not None:
            yield drawing
    planted = scores.draw(material.of(~material.table.suite), "planted")
    if planted is not None:
        yield planted


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
