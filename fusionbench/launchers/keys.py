"""Keys of cached hidden states, and the hidden states that jobs read."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Tap
from fusionbench.harness.bundle import Bundle
from fusionbench.harness.model import seeded_fusion, shape_of
from fusionbench.harness.stepping import taps_of
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.registry.plugins import load_method
from fusionbench.registry.provenance import source_hash
from fusionbench.study.plan import Cell, ModelJob, TrainJob, layer_candidates, tuning_specs


def feature_key(cell: Cell, bundle: Bundle, size: int) -> FeatureKey:
    """The key of a cell's hidden states."""
    spec, card = cell.spec, cell.encoder
    return FeatureKey(
        weights=spec.weights,
        size=size,
        images=bundle.images,
        count=bundle.count,
        precision=spec.budget.precision,
        dtype=spec.budget.feature_dtype,
        code="" if card.origin == BUILT_IN else source_hash(Path(card.path)),
    )


def seeds_of_pass(seed: int, size: int) -> range:
    """The block of seeds that are trained together with this one."""
    first = seed - seed % size
    return range(first, first + size)


def all_taps(trainings: Iterable[TrainJob | ModelJob], encoder: Encoder) -> set[Tap]:
    """The hidden states that these trainings read; a method's taps may depend on the seed."""
    taps: set[Tap] = set()
    for job in trainings:
        first = job.tasks[0]
        for cell in (first, *layer_candidates(first).values()):
            # A method that cannot be built fails, or is skipped, when its cells run.
            try:
                for seed in _seeds(job, cell):
                    taps |= _taps(job, cell, encoder, seed)
            except (Exception, SystemExit):
                continue
    return taps


def _seeds(job: TrainJob | ModelJob, cell: Cell) -> set[int]:
    """The seeds of a job's cells and of its tuning runs."""
    size = cell.spec.budget.seeds_per_pass
    tuning = {run.seed for runs in tuning_specs(cell.spec).values() for run in runs}
    return tuning.union(*(seeds_of_pass(one.spec.seed, size) for one in job.cells))


def _taps(job: TrainJob | ModelJob, cell: Cell, encoder: Encoder, seed: int) -> set[Tap]:
    budget, settings = cell.spec.budget, cell.chosen.settings
    method = load_method(cell.chosen.card)
    if isinstance(job, ModelJob):
        from fusionbench.vlm.model import fusion_of, reader_shape

        return set(taps_of(fusion_of(method, settings, encoder, reader_shape(job.spec), seed)))
    whole = replace(encoder.shape, query_dim=budget.query_dim, mlp=encoder.mlp)
    shape = shape_of(whole, settings, budget)
    return set(taps_of(seeded_fusion(method, settings, shape, stream=(cell.spec.task, seed))))
