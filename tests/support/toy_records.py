"""Records and outcomes by hand, as a run would leave them."""

from dataclasses import replace

import numpy as np

from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.records.store import Items, Store
from fusionbench.study.study import QUICK

ITEMS = Items(names=tuple(f"item-{i}" for i in range(40)), groups=tuple("abcd" * 10))
CODE = {"fusionbench": "0.1.0", "commit": "c0ffee", "dirty": False}


def spec(method="mema", task="digits", seed=0, **changes) -> CellSpec:
    start = CellSpec(
        encoder="nano", weights="w", method=method, method_version=1, settings={"reduction": 4},
        task=task, task_version=1, data="d" * 32, budget=QUICK.budget, seed=seed,
    )  # fmt: skip
    return replace(start, **changes)


def record(cell: CellSpec, scores=None, **facts) -> CellRecord:
    """A finished cell, in the suite and of the skill `fine` unless told otherwise."""
    start = CellRecord(
        spec=cell, status="done", label=cell.method, group="fine", in_suite=True, chance=0.1,
        score=None if scores is None else float(np.mean(scores)),
        examples=0 if scores is None else len(scores),
        parameters={"fusion": 10, "projector": 20, "reader": 30},
        provenance={"code": CODE, "method": "built-in", "task": "built-in"},
    )  # fmt: skip
    return replace(start, **facts)


def outcomes(share: float, seed: int = 0) -> np.ndarray:
    """One score of 0 or 1 for each of ITEMS, `share` of them 1, which ones drawn from the seed."""
    right = np.zeros(len(ITEMS.names), dtype=np.float32)
    right[: round(share * len(right))] = 1
    return np.random.default_rng(seed).permutation(right)


def put(store: Store, cell: CellSpec, share: float, draw: int | None = None, **facts) -> CellRecord:
    """Write a finished cell whose share of right answers is `share`."""
    scores = outcomes(share, cell.seed if draw is None else draw)
    return store.write(record(cell, scores, **facts), scores, ITEMS)
