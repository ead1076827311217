"""Records from files of lmms-eval, written into a folder of results.

Where lmms-eval ran a cell of ours (`--model fusionbench`), the specification is that cell's, with
the task of lmms-eval. Of any other model, encoder, training and budget are not known; its name is
the method. `source` gives both a condition of their own in every table, so that no number of
another tool is pooled with ours; no imported task is in the suite.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import Problem, UserError
from fusionbench.records.cell import Budget, CellRecord, CellSpec, canonical
from fusionbench.records.lmms_files import TOOL, LmmsEvaluation, Sample, read_folder
from fusionbench.records.lookup import find_record, split_place
from fusionbench.records.outcomes import Items, Said
from fusionbench.records.store import Store

NAME = "fusionbench"
"""Our models in lmms-eval: `--model fusionbench`."""
RESULTS = "results/local"
UNKNOWN = "unknown"
"""The encoder of a model that is not ours."""
PREFIX = "lmms:"
"""In front of the name of an imported task."""
_TRACK = "vlm"
_NOTHING = Budget(steps=0, batch=0, lrs=())
_NEAR = 1e-6
"""Largest difference of a mean of outcomes and lmms-eval's own number."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcomes of a task by one of its metrics, or why there are none."""

    metric: str
    outcomes: Float[np.ndarray, " sample"] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was imported of one evaluation."""

    record: CellRecord
    fresh: bool
    """False if the folder had the record."""


def import_folder(
    folder: Path, out: Path, *, results: Path | None = None, version: str = ""
) -> tuple[list[Imported], list[Problem]]:
    """Write a record for each task of each run in a folder of lmms-eval; the newest run counts.

    `results`: where our own cells are, if not where `model_args` says. `version`: of lmms-eval,
    which its files do not name. Raises UserError before anything is written.
    """
    evaluations = read_folder(folder)
    made = [_Import.of(one, results, version) for one in evaluations]
    found: list[Imported] = []
    problems: list[Problem] = []
    with Store.create(out) as store:
        for each in made:
            fresh = store.find(each.record.id) is None
            kept = store.write(each.record, each.scored.outcomes, each.items, each.answers)
            if kept.measures != each.record.measures:
                problems.append(_other(each, kept))
            found.append(Imported(record=kept, fresh=fresh))
    return found, problems


def evaluated_record(cell: str, results: Path) -> tuple[CellRecord, Path]:
    """The record that `model_args` names, and its folder of results.

    `cell`: the id of a cell or model in `results`, a file of either, or a folder of results with
    one model. Raises UserError for anything else.
    """
    if not cell:
        raise UserError("model_args names no cell", "--model_args cell=ID,results=DIR")
    if (Path(cell) / "cells").is_dir():
        return _only(Path(cell)), Path(cell)
    home, name, of_model = split_place(cell, results)
    return find_record(Store.open(home), name, model=of_model), home


def _only(folder: Path) -> CellRecord:
    """A record of the only model of a folder. Raises UserError for none or several."""
    trained = [one for one in Store.open(folder).records() if one.model]
    models = Counter(one.model for one in trained)
    if len(models) != 1:
        named = ", ".join(sorted({f"{one.label} ({one.model})" for one in trained})[:5]) or "none"
        raise UserError(
            f"{folder} holds {len(models)} models, not one: {named}",
            f"name one: cell=ID,results={folder}",
        )
    return min(trained, key=lambda one: one.spec.task)


@dataclass(frozen=True, kw_only=True)
class _Import:
    """A record with the files that belong to it."""

    evaluation: LmmsEvaluation
    record: CellRecord
    scored: Scored
    items: Items | None
    answers: tuple[Said, ...]

    @staticmethod
    def of(found: LmmsEvaluation, results: Path | None, version: str) -> "_Import":
        """What is written of an evaluation. Raises UserError for a cell that is not here."""
        cell = _cell(found, results)
        scored = scored_by(found)
        known = scored.outcomes is not None
        items = items_of(found) if known else None
        names = items.names if items else ()
        answers = tuple(
            Said(item=name, text=one.text)
            for name, one in zip(names, found.samples if known else (), strict=True)
        )
        record = _record(found, cell, scored, version)
        record = replace(record, distinct=len({one.text for one in answers}))
        return _Import(evaluation=found, record=record, scored=scored, items=items, answers=answers)


def _cell(found: LmmsEvaluation, results: Path | None) -> CellRecord | None:
    """The cell of ours that was evaluated; None for another model."""
    if found.model != NAME:
        return None
    home = results or Path(found.arguments.get("results", RESULTS))
    try:
        return evaluated_record(found.arguments.get("cell", ""), home)[0]
    except UserError as error:
        raise UserError(
            f"{found.file}: the cell that was evaluated is not here: {error.message}",
            "name the folder of its results with --results",
        ) from error


def _record(
    found: LmmsEvaluation, cell: CellRecord | None, scored: Scored, version: str
) -> CellRecord:
    facts = {
        "file": found.file.name, "date": found.date, "run in": found.tool,
        "task version": found.version,
        "model": found.model, "model_args": dict(found.arguments), "cell": cell.id if cell else "",
    }  # fmt: skip
    record = CellRecord(
        spec=_spec(found, cell),
        status="done",
        label=cell.label if cell else _name(found),
        seed_scope="suite",
        metric=scored.metric,
        score=_score(found, scored),
        examples=found.examples,
        measures=found.measures,
        notes=scored.notes,
        source=f"{TOOL} {version}".strip(),
        provenance={TOOL: facts},
    )
    if cell is None:
        return replace(record, family=record.label, control="none: an imported model")
    return replace(
        record,
        family=cell.family,
        control=cell.control,
        representative=cell.representative,
        reads_answers=cell.reads_answers,
        lr=cell.lr,
        lr_at_edge=cell.lr_at_edge,
        parameters=cell.parameters,
        taps=cell.taps,
        in_encoder=cell.in_encoder,
        tokens=cell.tokens,
    )


def _spec(found: LmmsEvaluation, cell: CellRecord | None) -> CellSpec:
    version = found.version.removesuffix(".0")
    task = PREFIX + found.task
    number = int(version) if version.isdecimal() else 0
    if cell is not None:
        return replace(cell.spec, task=task, task_version=number, data=data_of(found))
    return CellSpec(
        track=_TRACK, encoder=UNKNOWN, weights="", method=_name(found), method_version=0,
        settings={"model": found.model, **found.arguments}, task=task, task_version=number,
        data=data_of(found), budget=_NOTHING, seed=0,
    )  # fmt: skip


def _name(found: LmmsEvaluation) -> str:
    return found.model_name or found.model


def data_of(found: LmmsEvaluation) -> str:
    """A hash over data set, split, prompts and true answers of a task; no file names its images."""
    asked = [[one.document, one.question, one.prompt, one.target] for one in found.samples]
    facts = [found.task, found.version, dict(found.facts), found.examples, asked]
    return hashlib.sha256(canonical(facts).encode()).hexdigest()


def items_of(found: LmmsEvaluation) -> Items:
    """Items by question, where each has its own, else by document.

    Questions that share a `question_id` (MME names the image by it) share their image group; else
    each is a group of its own, since samples do not name their image.
    """
    questions = [one.question for one in found.samples]
    single = all(questions) and len(set(questions)) == len(questions)
    place = f"{PREFIX}{found.task}/"
    own = [one.question if single else str(one.document) for one in found.samples]
    groups = [one.question or f"document {one.document}" for one in found.samples]
    return Items(
        names=tuple(place + name for name in own), groups=tuple(place + name for name in groups)
    )


def scored_by(found: LmmsEvaluation) -> Scored:
    """Outcomes by the first metric whose mean over samples is lmms-eval's own number.

    Without one, by the first metric with numbers from 0 to 1 for all samples, with a note; without
    that, none, and the note has the reason.
    """
    first = next(iter(found.measures))
    if reason := _unusable(found):
        return Scored(metric=first, notes=(f"aggregate only: {reason}",))
    complete = [
        name for name in found.samples[0].numbers
        if all(name in one.numbers for one in found.samples)
    ]  # fmt: skip
    columns = {name: _column(found.samples, name) for name in complete}
    usable = {name: column for name, column in columns.items() if _is_outcome(column)}
    for name, column in usable.items():
        if abs(_aggregate(found, name) - column.mean()) < _NEAR:
            return Scored(metric=name, outcomes=column.astype(np.float32))
    if usable:
        name = next(iter(usable))
        note = f"the number of {name} in the measures is no mean of the samples' numbers"
        outcomes = usable[name].astype(np.float32)
        return Scored(metric=f"{name}, mean", outcomes=outcomes, notes=(note,))
    others = sorted({name for one in found.samples for name in (*one.others, *one.numbers)})
    shown = ", ".join(others) or "none"
    reason = f"no metric has a number from 0 to 1 for every sample (metrics: {shown})"
    return Scored(metric=first, notes=(f"aggregate only: {reason}",))


def _unusable(found: LmmsEvaluation) -> str:
    """Why the samples of a task are not used; empty if they are."""
    if not found.samples:
        return "no file of samples; lmms-eval writes it with --log_samples"
    if len(found.filters) > 1:
        return f"the samples do not say to which filter they belong: {', '.join(found.filters)}"
    seen = Counter(one.document for one in found.samples)
    document, most = seen.most_common(1)[0]
    if most > 1:
        raise UserError(
            f"{found.file}: the samples of {found.task} hold document {document} {most} times",
            "two runs may have written into one file",
        )
    return ""


def _score(found: LmmsEvaluation, scored: Scored) -> float | None:
    """The mean outcome; of an aggregate alone its number if it is from 0 to 1."""
    if scored.outcomes is not None:
        return float(scored.outcomes.mean())
    number = found.measures[scored.metric]
    return number if 0 <= number <= 1 else None


def _column(samples: Sequence[Sample], name: str) -> Float[np.ndarray, " sample"]:
    return np.array([one.numbers[name] for one in samples])


def _is_outcome(column: Float[np.ndarray, " sample"]) -> bool:
    return bool(((column >= 0) & (column <= 1)).all())


def _aggregate(found: LmmsEvaluation, metric: str) -> float:
    """lmms-eval's number of a metric behind the task's only filter; infinite without one."""
    names = [metric, *(f"{metric},{one}" for one in found.filters)]
    return next((found.measures[name] for name in names if name in found.measures), np.inf)


def _other(each: _Import, kept: CellRecord) -> Problem:
    found = each.evaluation
    return Problem(
        source=str(found.file),
        message=f"{found.task} was imported before with other numbers; cell {kept.id} is kept",
    )
