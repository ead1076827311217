"""Time of the track `vlm` for `--dry-run`: one training a model, then its cells one by one.

From the models in the same folder where there are any, else from a count of operations: 4 a weight
of the language model and token, 2 forward and 2 back to the embeddings.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fusionbench.encoders.snapshots import weight_files
from fusionbench.launchers.limits import worker_count
from fusionbench.records.cell import CellRecord, RunOptions
from fusionbench.records.folder import MODELS
from fusionbench.study.plan import ModelJob
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
        total += rate * _rows(job, tuned=job.id in first)
    for job in models:
        each = asked.get(_kind(job)) or _questions(job) * _operations(job) / 4 / _rate(options)
        total += each * len(job.cells)
    workers = worker_count(options)
    return total / max(1, min(workers, len(models))), measured


def _kind(job: ModelJob) -> Kind:
    return job.spec.encoder, job.cells[0].chosen.card.in_encoder


def _trained(options: RunOptions, records: Sequence[CellRecord]) -> Mapping[Kind, float]:
    """Median seconds of a training row, by kind."""
    times: dict[Kind, list[float]] = defaultdict(list)
    for record in {one.model: one for one in records if one.model}.values():
        note = Path(options.out) / MODELS / f"{record.model}.json"
        with suppress(OSError, ValueError, KeyError):
            seconds = float(json.loads(note.read_text(encoding="utf-8"))["seconds"])
            rows = record.spec.budget.steps * record.spec.budget.batch
            times[record.spec.encoder, record.in_encoder].append(seconds / rows)
    return _medians(times)


def _asked(records: Iterable[CellRecord]) -> Mapping[Kind, list[float]]:
    times: dict[Kind, list[float]] = defaultdict(list)
    for record in records:
        if record.model and record.seconds > 0:
            times[record.spec.encoder, record.in_encoder].append(record.seconds)
    return times


def _medians(times: Mapping[Kind, list[float]]) -> Mapping[Kind, float]:
    return {kind: statistics.median(found) for kind, found in times.items()}


def _rows(job: ModelJob, *, tuned: bool) -> int:
    """Rows that pass in training; with `tuned` those of the runs that choose rate and layer."""
    spec, cell = job.spec, job.cells[0]
    budget, stages = spec.budget, spec.training.stages if spec.training else ()
    whole = sum((one.steps or budget.steps) * (one.batch or budget.batch) for one in stages)
    runs = len(budget.lrs) * budget.tuning_seeds if len(budget.lrs) > 1 else 0
    layers = cell.encoder.layers if cell.chosen.card.tries else 0
    trials = layers * (budget.trial_steps or budget.steps) * budget.batch
    return whole + (runs * whole + trials if tuned else 0)


def _questions(job: ModelJob) -> int:
    """Test examples of a task; 500 where their number is not known yet."""
    return job.spec.budget.test_items or 500


def _operations(job: ModelJob) -> float:
    """Of one training row."""
    card, spec = job.cells[0].encoder, job.spec
    tokens = card.tokens + _TEXT
    block = 2 * card.tokens * 12 * card.dim**2 + 4 * card.tokens**2 * card.dim
    encoder = 2.5 * card.layers * block if job.cells[0].chosen.card.in_encoder else 0
    return 4.0 * tokens * _weights(spec.training.language if spec.training else "") + encoder


def _weights(language: str) -> float:
    """Parameters of a language model, from the size of its files."""
    layers, width, _ = WORDS_SIZE
    if language in ("", "words"):
        return 12.0 * layers * width**2
    files = weight_files(checkpoint_folder(language))
    return sum(file.stat().st_size for file in files) / _BYTES


def _rate(options: RunOptions) -> float:
    return _GPU_RATE if options.device.startswith("cuda") else _CPU_RATE
