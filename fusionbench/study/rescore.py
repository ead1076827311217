"""Scores computed again from stored answers: no model, no torch.

Task.judge, or Benchmark.outcomes and measures on the benchmark's items, give the outcome of each
stored text. A record is never changed: an outcome, score or measure that comes out otherwise is a
difference. Code that scores otherwise on purpose needs a new version of its task, and cells of an
older version are left out with that reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusionbench.api.benchmarks import Benchmark, Item, answer_to, stream, with_outcomes
from fusionbench.api.errors import UserError
from fusionbench.api.sources import find_source
from fusionbench.api.tasks import judged
from fusionbench.harness.bundle import Bundle, bundle_path, cached_bundle, cut
from fusionbench.records.cell import CellRecord
from fusionbench.records.outcomes import Said
from fusionbench.records.store import Store
from fusionbench.registry.cards import BenchmarkCard, TaskCard
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.plugins import load_benchmark, load_task
from fusionbench.study.data import benchmark_hash, load_data, task_hash

_SHOWN = 3
"""Items whose difference is named."""
_TOLERANCE = 1e-6
"""Of a mean: sums in float32 may be rounded otherwise by another release of NumPy."""

Verdict = Literal["equal", "differs", "left out"]


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """A cell and what became of its scores."""

    record: CellRecord
    verdict: Verdict
    details: tuple[str, ...] = ()
    """What differs, or why the cell was left out."""


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """What a record should hold."""

    outcomes: Float[np.ndarray, " item"]
    score: float
    scores: Mapping[str, float]
    measures: Mapping[str, float | int | None]


class _LeftOut(Exception):
    """Why a cell cannot be scored again."""


@dataclass(kw_only=True)
class Rescorer:
    """Scores cells of a folder; the data of each task is read once."""

    store: Store
    catalog: Catalog
    data_root: str = ""
    """Folder of the benchmarks' files."""
    _hashes: dict[str, str] = field(default_factory=dict)
    _bundles: dict[object, Bundle] = field(default_factory=dict)
    _items: dict[str, Mapping[str, Item]] = field(default_factory=dict)

    def run(self) -> Iterator[Rescored]:
        """Every finished cell with answers, in the order of ids.

        Raises UserError for a folder in which no cell kept its answers.
        """
        records = [record for record in self.store.records() if record.answers]
        if not records:
            raise UserError(
                f"no cell in {self.store.folder} kept its answers",
                "cells of the track vlm keep them",
            )
        for record in records:
            yield self.again(record)

    def again(self, record: CellRecord) -> Rescored:
        """One cell."""
        try:
            said = self.store.answers(record)
            found = self._scores(record, said)
            details = tuple(self._differences(record, said, found))
        except _LeftOut as reason:
            return Rescored(record=record, verdict="left out", details=(str(reason),))
        except UserError as error:
            return Rescored(record=record, verdict="differs", details=(error.message,))
        verdict: Verdict = "differs" if details else "equal"
        return Rescored(record=record, verdict=verdict, details=details)

    def _scores(self, record: CellRecord, said: Sequence[Said]) -> _Scores:
        spec = record.spec
        if record.source:
            raise _LeftOut(f"imported from {record.source}")
        cards: Mapping[str, TaskCard | BenchmarkCard]
        cards = {**self.catalog.tasks, **self.catalog.benchmarks}
        card = cards.get(spec.task)
        if card is None:
            raise _LeftOut(f"no task {spec.task!r} here; name its file with --plugin")
        if card.version != spec.task_version:
            raise _LeftOut(
                f"recorded with version {spec.task_version} of {spec.task}, here is {card.version}"
            )
        if isinstance(card, BenchmarkCard):
            return self._benchmark(card, record, said)
        return self._local(card, record, said)

    def _local(self, card: TaskCard, record: CellRecord, said: Sequence[Said]) -> _Scores:
        # It loads scipy, which no other command that imports this file needs.
        from fusionbench.stats.cells import named_metrics

        task = load_task(card)
        items = self._bundle(card, record).scored(record.spec.split)
        _require_items(said, items.names)
        outcomes = judged(task, [one.text for one in said], items)
        # It loads scipy.

        named, _ = named_metrics(task.metrics, outcomes, items, task.metric)
        return _Scores(outcomes=outcomes, score=float(outcomes.mean()), scores=named, measures={})

    def _bundle(self, card: TaskCard, record: CellRecord) -> Bundle:
        spec = record.spec
        path = bundle_path(spec.task, spec.data, spec.budget)
        if path not in self._bundles:
            # The name of a cached bundle holds the hash of the data.
            known = cached_bundle(path)
            if known is None:
                self._require_data(card, spec.data)
                known = cut(spec.task, load_data(card), spec.budget)[0]
            self._bundles[path] = known
        return self._bundles[path]

    def _require_data(self, card: TaskCard, wanted: str) -> None:
        if not card.available:
            raise _LeftOut(f"task {card.name!r} needs {', '.join(card.missing)}")
        if card.name not in self._hashes:
            self._hashes[card.name] = task_hash(card)
        if self._hashes[card.name] != wanted:
            raise _LeftOut(f"the data of {card.name} is not that of the record")

    def _benchmark(self, card: BenchmarkCard, record: CellRecord, said: Sequence[Said]) -> _Scores:
        benchmark = load_benchmark(card)
        items = self._questions(card, benchmark, record)
        _require_items(said, tuple(items))
        answers = [answer_to(items[one.item], one.text, one.ranked) for one in said]
        known = with_outcomes(benchmark, answers)
        array = np.array([one.outcome for one in known], dtype=np.float32)
        score = float(array.mean())
        return _Scores(
            outcomes=array,
            score=score,
            scores={benchmark.metric: score},
            measures=dict(benchmark.measures(known)),
        )

    def _questions(
        self, card: BenchmarkCard, benchmark: Benchmark, record: CellRecord
    ) -> Mapping[str, Item]:
        """The items of a benchmark by name, in their order."""
        if not self.data_root:
            raise _LeftOut("its questions are not here; name their folder with --data-root")
        name = card.name
        if name not in self._hashes:
            self._hashes[name] = benchmark_hash(card, self.data_root)
        if self._hashes[name] != record.spec.data:
            raise _LeftOut(f"the files of {name} are not those of the record")
        if name not in self._items:
            source = find_source(name, card.needs, self.data_root)
            self._items[name] = {item.name: item for item in stream(benchmark, source)}
        return self._items[name]

    def _differences(
        self, record: CellRecord, said: Sequence[Said], found: _Scores
    ) -> Iterator[str]:
        stored = self.store.outcomes(record)
        if len(stored) != len(found.outcomes):
            yield f"{len(stored)} recorded outcomes, {len(found.outcomes)} answers"
            return
        other = np.flatnonzero(stored.astype(np.float32) != found.outcomes)
        if len(other):
            yield f"{len(other)} of {len(stored)} outcomes"
        for row in other[:_SHOWN]:
            yield (
                f"item {said[row].item}: {said[row].text!r} was scored {stored[row]:g}, "
                f"now {found.outcomes[row]:g}"
            )
        yield from _unequal("score", {"": record.score}, {"": found.score})
        yield from _unequal("metric", record.scores, found.scores)
        yield from _unequal("measure", record.measures, found.measures)


def _require_items(said: Sequence[Said], names: Sequence[str]) -> None:
    """Raise UserError unless there is one answer to each item, in order."""
    if tuple(one.item for one in said) != tuple(names):
        raise UserError(f"the {len(said)} answers are not those to the task's {len(names)} items")


def _unequal(
    kind: str, stored: Mapping[str, float | int | None], found: Mapping[str, float | int | None]
) -> Iterator[str]:
    for name in sorted(stored.keys() | found.keys()):
        one, two = stored.get(name), found.get(name)
        if not _close(one, two):
            yield f"{f'{kind} {name}'.strip()}: recorded {_shown(one)}, now {_shown(two)}"


def _close(one: float | None, two: float | None) -> bool:
    if one is None or two is None:
        return one is two
    return abs(one - two) <= _TOLERANCE * max(1.0, abs(one)) or (one != one and two != two)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
