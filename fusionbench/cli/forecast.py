"""`--dry-run`: which cells would run, what is there already, how long and how much disk.

Time comes from the cells of each method in the same folder, else from those of other methods of its
kind, else from a count of operations at a nominal rate; the text says which. A training of the
track `vlm` counts 4 operations a weight of the language model and token: 2 forward, and 2 back to
the embeddings.
"""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from fusionbench.cli.listing import columns
from fusionbench.cli.summary import times
from fusionbench.harness.bundle import bundle_path
from fusionbench.launchers.limits import (
    examples,
    inside_operations,
    operations,
    rate,
    scoring_seconds,
    worker_count,
)
from fusionbench.models.encoders.snapshots import weight_files
from fusionbench.records.cell import CellRecord, CellSpec, RunOptions
from fusionbench.records.files import cache_dir
from fusionbench.records.folder import MODELS
from fusionbench.registry.selection import shown
from fusionbench.study.plan import Cell, ModelJob, Plan
from fusionbench.study.study import PROBE
from fusionbench.study.training import WORDS_SIZE, checkpoint_folder

_CPU_RATE, _GPU_RATE = 2.5e10, 2e13
"""Operations per second of one core of a server, and of a GPU that a language model fills."""
_TEXT = 24
"""Tokens of a question and its answer."""
_BYTES = 2
"""Of a stored weight."""
Kind = tuple[str, bool]
"""(encoder, whether a step runs through it)"""


def untrained(models: Sequence[ModelJob], options: RunOptions) -> list[ModelJob]:
    """The models without weights in the folder of results."""
    folder = Path(options.out) / MODELS
    return [job for job in models if not (folder / f"{job.id}.json").exists()]


def model_seconds(
    models: Sequence[ModelJob], options: RunOptions, records: Sequence[CellRecord]
) -> tuple[float, bool]:
    """Wall time of these models and their cells, and whether every kind was measured."""
    trained, asked = _trained(options, records), _medians(_asked(records))
    training = untrained(models, options)
    first = {job.id for job in training if job.spec.seed == min(one.spec.seed for one in models)}
    total, measured = 0.0, True
    for job in training:
        kind = _kind(job)
        measured = measured and kind in trained
        rate = trained.get(kind) or _operations(job) / _rate(options)
        total += rate * _model_rows(job, tuned=job.id in first)
    for job in models:
        each = asked.get(_kind(job)) or _questions(job) * _operations(job) / 4 / _rate(options)
        total += each * len(job.cells)
    workers = worker_count(options, trainings=[job.cells[0] for job in models])
    return total / max(1, min(workers, len(models))), measured


def _kind(job: ModelJob) -> Kind:
    return job.spec.encoder, job.cells[0].chosen.card.in_encoder


def _trained(options: RunOptions, records: Sequence[CellRecord]) -> Mapping[Kind, float]:
    """Median seconds of a training row, by kind."""
    times: dict[Kind, list[float]] = defaultdict(list)
    for record in {one.model: one for one in records if one.model and not one.source}.values():
        rows = _stage_rows(record.spec)
        if not rows:
            continue
        note = Path(options.out) / MODELS / f"{record.model}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            seconds = float(json.loads(note.read_text(encoding="utf-8"))["seconds"])
            times[record.spec.encoder, record.in_encoder].append(seconds / rows)
    return _medians(times)


def _asked(records: Iterable[CellRecord]) -> Mapping[Kind, list[float]]:
    times: dict[Kind, list[float]] = defaultdict(list)
    for record in records:
        if record.model and record.seconds > 0 and not record.source:
            times[record.spec.encoder, record.in_encoder].append(record.seconds)
    return times


def _medians(times: Mapping[Kind, list[float]]) -> Mapping[Kind, float]:
    return {kind: statistics.median(found) for kind, found in times.items()}


def _model_rows(job: ModelJob, *, tuned: bool) -> int:
    """Rows that pass in training; with `tuned` those of the runs that choose rate and layer."""
    spec, cell = job.spec, job.cells[0]
    budget, whole = spec.budget, _stage_rows(spec)
    runs = len(budget.lrs) * budget.tuning_seeds if len(budget.lrs) > 1 else 0
    layers = cell.encoder.layers if cell.chosen.card.tries else 0
    trials = layers * (budget.trial_steps or budget.steps) * budget.batch
    return whole + (runs * whole + trials if tuned else 0)


def _stage_rows(spec: CellSpec) -> int:
    """Rows that pass in all stages of one training; 0 if nothing is trained."""
    budget, stages = spec.budget, spec.training.stages if spec.training else ()
    return sum((one.steps or budget.steps) * (one.batch or budget.batch) for one in stages)


def _questions(job: ModelJob) -> int:
    """Test examples of a task; 500 where their number is not known yet."""
    return job.spec.budget.test_items or 500


def _operations(job: ModelJob) -> float:
    """Of one training row."""
    cell, spec = job.cells[0], job.spec
    weights = _weights(spec.training.language if spec.training else "")
    return 4.0 * (cell.encoder.tokens + _TEXT) * weights + inside_operations(cell)


def _weights(language: str) -> float:
    """Parameters of a language model, from the size of its files."""
    layers, width, _ = WORDS_SIZE
    if language in ("", "words"):
        return 12.0 * layers * width**2
    files = weight_files(checkpoint_folder(language))
    return sum(file.stat().st_size for file in files) / _BYTES


def _rate(options: RunOptions) -> float:
    return _GPU_RATE if options.device.startswith("cuda") else _CPU_RATE


_MIB = 2**20
_REPORT_SECONDS = 0.01
"""What each further cell adds to the time of a report."""
CellKind = tuple[str, str | bool]
"""(encoder, label of the method, or whether it trains through the encoder)"""
_OWN = "from the cells in this folder"
_OTHERS = "a rough guess: of some methods no cell is in this folder"
_COUNTED = "a rough guess from operation counts"


def forecast(
    plan: Plan, options: RunOptions, records: Iterable[CellRecord], *, full: bool = False
) -> str:
    """The text of a dry run; `records` of the same kinds of cells tell the time.

    `full`: every method on every task; else the totals by method and by task.
    """
    models = [job for job in plan.jobs() if isinstance(job, ModelJob)]
    known = list(records)
    if models:
        seconds, measured = model_seconds(models, options, known)
        source = _OWN if measured else _COUNTED
    else:
        seconds, source = _seconds(plan, options, known)
    lines = [
        f"{len(plan.pending)} of {len(plan.cells)} cells to run, {plan.finished} are there already",
        *_trainings(models, options),
        f"time: about {duration(seconds)} ({source}); {_besides(plan)}",
        *_fetched(plan),
        *_disk(plan, options),
        *(f"left out: {one.card.name}: {one.reason}" for one in plan.resolved.unavailable),
        *(f"{name}: runs as {kept}" for name, kept in sorted(plan.resolved.same.items())),
        "",
        _all_rows(plan) if full else _totals(plan),
    ]
    return "\n".join(lines) + "\n"


def _besides(plan: Plan) -> str:
    """Start-up and report, as the last run on this machine took them."""
    last = times()
    if not last:
        return "start-up and report come on top, and were not measured here yet"
    report = last["report"] + _REPORT_SECONDS * max(0.0, len(plan.cells) - last["cells"])
    return (
        f"start-up with encoding {duration(last['start'])} and report {duration(report)} on top "
        "(by the last run here)"
    )


def _fetched(plan: Plan) -> list[str]:
    """A line for each encoder whose weights are not here."""
    absent = {cell.encoder.name: cell.encoder for cell in plan.pending if not cell.encoder.weights}
    return [
        f"first: the weights of {name} are not here ({card.get}); until then no record of them is "
        "counted as there"
        for name, card in sorted(absent.items())
    ]


def _all_rows(plan: Plan) -> str:
    return columns([("cells", "method", "task", "encoder", "settings"), *_rows(plan.pending)])


def _totals(plan: Plan) -> str:
    """Pending cells by method and by task."""
    if not plan.pending:
        return ""
    methods = Counter(cell.chosen.label for cell in plan.pending)
    tasks = Counter(cell.spec.task for cell in plan.pending)
    tables = [
        columns([("cells", name), *((str(count), key) for key, count in counts.items())])
        for name, counts in (("method", methods), ("task", tasks))
    ]
    return "\n\n".join([*tables, "each method on each task, with its settings: --full"])


def _trainings(models: Sequence[ModelJob], options: RunOptions) -> list[str]:
    """How many models are trained for these cells, for how many steps, on what."""
    if not models:
        return []
    there = len(models) - len(untrained(models, options))
    training, budget = models[0].spec.training, models[0].spec.budget
    stages = training.stages if training else ()
    steps = " + ".join(
        f"{one.steps or budget.steps} steps of {one.batch or budget.batch} "
        f"on {one.count:,} rows of {', '.join(one.parts)}"
        for one in stages
    )
    return [f"{len(models)} models ({there} trained already): {steps}"]


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rows(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for cell in cells:
        settings = " ".join(f"{k}={shown(v)}" for k, v in cell.chosen.settings.items())
        row = (cell.chosen.label, cell.spec.task, cell.spec.encoder, settings or "-")
        counts[row] += 1
    return [(str(count), *row) for row, count in counts.items()]


def _seconds(plan: Plan, options: RunOptions, records: Iterable[CellRecord]) -> tuple[float, str]:
    """Wall time of the pending cells, and what it was estimated from."""
    times: dict[CellKind, list[float]] = defaultdict(list)
    for record in records:
        spec, rows = record.spec, record.spec.budget.steps * record.spec.budget.batch
        if record.seconds > 0 and rows and spec.track == PROBE and not record.source:
            for kind in (record.label or spec.method, record.in_encoder):
                times[spec.encoder, kind].append(record.seconds / rows)
    rates: Mapping[CellKind, float] = {
        kind: statistics.median(found) for kind, found in times.items()
    }
    total, speed, sources = 0.0, rate(options), {_OWN}
    for cell in plan.pending:
        own: CellKind = (cell.spec.encoder, cell.chosen.label)
        others: CellKind = (cell.spec.encoder, cell.chosen.card.in_encoder)
        trained = examples(cell, tuned=cell.spec.seed == 0)
        if own in rates or others in rates:
            total += (rates.get(own) or rates[others]) * trained
            sources.add(_OWN if own in rates else _OTHERS)
        else:
            total += trained * operations(cell) / speed + scoring_seconds(cell, speed)
            sources.add(_COUNTED)
    source = next(one for one in (_COUNTED, _OTHERS, _OWN) if one in sources)
    return total / _workers(plan, options), source


def _disk(plan: Plan, options: RunOptions) -> list[str]:
    """What the hidden states take at most, and what the cache holds."""
    most, unknown = 0.0, 0
    cells = [cell for job in plan.jobs() for cell in job.tasks]
    seen = {(c.spec.encoder, c.spec.task, c.encoder.size): c for c in cells}
    prepared = 0
    for cell in seen.values():
        budget, card = cell.spec.budget, cell.encoder
        prepared += bundle_path(cell.spec.task, cell.spec.data, budget).exists()
        images = (budget.train_items, budget.val_items, budget.test_items)
        unknown += not all(images)
        size = np.dtype(budget.feature_dtype).itemsize
        most += sum(images) * card.tokens * card.dim * (card.layers + 1) * size
    held = sum(file.stat().st_size for file in cache_dir("features").glob("*.npy"))
    sizes = [f"at most {most / _MIB:.0f} MiB"] if most or not unknown else []
    sizes += [f"of {unknown} tasks in full, size not known yet"] if unknown else []
    return [
        f"disk: hidden states {' and '.join(sizes)}; the limit is {options.cache_gib:g} GiB",
        f"cached: {held / _MIB:.0f} MiB of hidden states of any study; data of {prepared} of "
        f"{len(seen)} tasks is prepared",
    ]


def _workers(plan: Plan, options: RunOptions) -> int:
    """Workers that will have a training to do."""
    together = max((cell.spec.budget.seeds_per_pass for cell in plan.pending), default=1)
    return max(1, min(worker_count(options, seeds_per_pass=together), sum(1 for _ in plan.jobs())))
