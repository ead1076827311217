"""`fusionbench.load(DIR)`: the records, contrasts and costs of a results folder as data frames."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.cell import CellRecord
from fusionbench.records.cost import CostRecord
from fusionbench.records.cost import read as read_profiles
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.cost_table import columns
from fusionbench.report.tables import Row, frame

if TYPE_CHECKING:
    import pandas as pd

    from fusionbench.report.page import Material

_SCORES = (
    *("track", "encoder", "steps", "condition", "method", "label", "task", "group", "in_suite"),
    "seed",
    *("metric", "score", "chance", "examples"),
)
_PARTS = ("fusion", "projector", "reader", "encoder")


class LoadedResults:
    """A results folder; each method returns a new pandas data frame.

    Raises UserError on construction if the folder does not exist or holds no record.
    """

    def __init__(self, folder: str | Path) -> None:
        self._results = Results.open(folder)

    def __repr__(self) -> str:
        return f"LoadedResults({str(self._results.store.folder)!r})"

    def scores(self) -> "pd.DataFrame":
        """One row for each finished cell.

        Columns: track, encoder, steps (training steps), condition (what all cells of one table have
        in common, with what tells it from the others), method (registered name), label (method with
        changed settings), task, group, in_suite (True if the task is in the suite), seed, metric,
        score (mean over the test examples, 0 to 1), chance (0 to 1), examples (number of
        test examples). label and task have a suffix where the results hold several versions.
        """
        cells = self._cells
        return cells.loc[cells["status"] == "done", list(_SCORES)].reset_index(drop=True)

    def cells(self) -> "pd.DataFrame":
        """One row for each cell, skipped and failed ones included.

        Columns: id, status (done, skipped, diverged or failed), reason (of any but done), the
        columns of `scores`, family and control (of the method), reads_answers, in_encoder (True if
        the encoder ran in every training step), method_version, task_version, settings (a dict),
        lr (chosen learning rate), lr_at_edge (True if it is the smallest or largest of the grid),
        parameters_fusion, parameters_projector, parameters_reader (trainable), parameters_encoder
        (frozen), seconds (of the run), commit and dirty (state of the code).
        """
        return self._cells.copy()

    def contrasts(self) -> "pd.DataFrame":
        """One row for each planned, follow-up and exploratory comparison of each condition.

        The columns of `tables/contrasts.csv`. scope (suite, group or task), name (of the group or
        task), method, baseline, control; delta (method minus baseline) and its 95 % interval low,
        high for new runs and new images; p, p_adjusted, verdict, mde (minimum detectable effect);
        n_seeds, n_examples, kind (planned, followup or exploratory). Differences, intervals and MDE
        are shares: 0.01 is one point. Below four seeds p, verdict and mde are empty.
        """
        return self._contrasts.copy()

    def answer(self) -> list[str]:
        """The sentences of the report's answer, condition by condition."""
        from fusionbench.report.answer import answer_page

        return [row["sentence"] for row in answer_page(self._material).rows]

    def differences(self) -> "pd.DataFrame":
        """The leaderboard: one row for each method and aggregate, the highest mean first.

        The columns of `tables/summary.csv`; delta, delta_low, delta_high are the difference from
        the baseline and its 95 % interval, as shares.
        """
        from fusionbench.report.leaderboard import leaderboard_page

        return frame(list(leaderboard_page(self._material.analyses).rows))

    def examples(self, method: str, task: str, condition: str = "") -> "pd.DataFrame":
        """One row for each test example of a task: example, image, and its score in each seed.

        `method` is a label and `task` a task of `scores`; `condition` is needed where several have
        the method. Raises UserError for a task that is not here and for a method that has no
        finished cell on it.
        """
        tables = [one for one in self._results.tables if condition in ("", one.condition.title)]
        if not tables:
            known = [one.condition.title for one in self._results.tables]
            raise unknown("condition", condition, known)
        tasks = {one.name for table in tables for one in table.tasks}
        if task not in tasks:
            raise unknown("task", task, tasks)
        found = [_done(table, method, task) for table in tables]
        runs, *others = [runs for runs in found if runs] or [[]]
        if not runs:
            raise unknown("method", method, sorted({n for t in tables for n in _labels(t, task)}))
        if others:
            titles = [t.condition.title for t, runs in zip(tables, found, strict=True) if runs]
            raise UserError(
                f"{len(titles)} conditions have {method} on {task}",
                f"add condition= with one of: {'; '.join(titles)}",
            )
        items = self._results.store.items(runs[0])
        pairs = zip(items.names, items.groups, strict=True)
        rows: list[Row] = [{"example": name, "image": image} for name, image in pairs]
        for run in runs:
            for row, score in zip(rows, self._results.outcomes(run), strict=True):
                row[f"seed_{run.spec.seed}"] = float(score)
        return frame(rows)

    def costs(self) -> "pd.DataFrame":
        """One row for each profile of `fusionbench profile`; no row without profiles.

        Columns: label, method, encoder, image_size (pixels), width (of the projector), device
        (`meta`: counted, not run), dtype, batch, mode (inference or train), compile; parameters_*
        and tokens_out (counts); flops_* (of one image, 2 per multiply-add); latency_*_ms (median
        and quartiles of a batch); throughput (images per second); peak_memory_*bytes.
        `over_encoder` is the difference to the bare encoder with the projector of one layer.
        """
        profiles = read_profiles(self._results.store.folder)
        return frame([_cost_row(profile) for profile in profiles])

    @cached_property
    def _cells(self) -> "pd.DataFrame":
        places = {
            id(record): (table.condition.title, table.methods[method], table.tasks[task].name)
            for table in self._results.tables
            for (method, task, _), record in table.cells.items()
        }
        none = ("", "", "")
        return frame([_cell_row(one, *places.get(id(one), none)) for one in self._results.records])

    @cached_property
    def _material(self) -> "Material":
        from fusionbench.report.build import collect

        return collect(self._results.store)

    @cached_property
    def _contrasts(self) -> "pd.DataFrame":
        from fusionbench.report.contrast_table import long_row

        analyses = self._material.analyses
        return frame([long_row(analysis, row) for analysis in analyses for row in analysis.rows])


def _labels(table: ScoreTable, task: str) -> list[str]:
    """Methods with a finished cell on the task."""
    return [name for name in table.methods if _done(table, name, task)]


def _done(table: ScoreTable, method: str, task: str) -> list[CellRecord]:
    """The finished cells of a method on a task, seed by seed."""
    names = [one.name for one in table.tasks]
    if method not in table.methods or task not in names:
        return []
    runs = table.runs(table.methods.index(method), names.index(task))
    return [run for run in runs if run.status == "done"]


def _cell_row(record: CellRecord, condition: str, label: str, task: str) -> Row:
    spec, code = record.spec, record.provenance.get("code", {})
    return {
        "id": record.id,
        "status": record.status,
        "reason": record.reason,
        "track": spec.track,
        "encoder": spec.encoder,
        "steps": spec.budget.steps,
        "condition": condition,
        "method": spec.method,
        "label": label or record.label or spec.method,
        "task": task or spec.task,
        "group": record.group,
        "in_suite": record.in_suite,
        "seed": spec.seed,
        "metric": record.metric,
        "score": record.score,
        "chance": record.chance,
        "examples": record.examples,
        "family": record.family,
        "control": record.control,
        "reads_answers": record.reads_answers,
        "in_encoder": record.in_encoder,
        "method_version": spec.method_version,
        "task_version": spec.task_version,
        "settings": dict(spec.settings),
        "lr": record.lr,
        "lr_at_edge": record.lr_at_edge,
        **{f"parameters_{part}": record.parameters.get(part) for part in _PARTS},
        "seconds": record.seconds,
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
    }


def _cost_row(profile: CostRecord) -> Row:
    how, parts = profile.conditions, ("fusion", "projector", "over_projector", "encoder")
    return {
        "label": profile.label,
        "method": how.method,
        "encoder": how.encoder,
        "image_size": how.image_size,
        "width": how.width,
        **{f"parameters_{part}": profile.parameters.get(part) for part in parts},
        "tokens_out": profile.tokens_out,
        **columns(profile),
    }
