"""Small studies whose true differences are known, written by the store as a run would."""

import zlib
from pathlib import Path

import numpy as np
from toy_records import record, spec

from fusionbench.records.store import Items, Store

GROUPS = {"digits": "fine", "textile": "fine", "easy_vqa": "semantic"}
CHANCE = {"digits": 0.1, "textile": 0.5, "easy_vqa": 0.25}


def items(task, count=300, start=0):
    names = tuple(f"{task}-{i}" for i in range(start, start + count))
    return Items(names=names, groups=tuple(f"{task}/image-{i // 2}" for i in range(count)))


def outcomes(method, task, seed, gain, count=300, draw=0):
    """Right answers with probability 0.5 + gain (plus the run's luck), paired between methods."""
    shared = np.random.default_rng([zlib.crc32(task.encode()), seed, draw])
    difficulty = np.random.default_rng(zlib.crc32(task.encode())).normal(0, 0.15, count)
    own = np.random.default_rng([zlib.crc32(f"{method}{task}".encode()), seed, draw])
    line = shared.random(count) + own.normal(0, 0.1, count) + difficulty + own.normal(0, 0.01)
    return (line < 0.5 + gain).astype(np.float32)


def study(folder, gains, *, seeds=6, tasks=tuple(GROUPS), draw=0, count=300, facts=None, **changes):
    """Cells of each method; `gains` maps a method to its gain, or to one for each task."""
    with Store.create(Path(folder)) as store:
        for method, gain in gains.items():
            for task in tasks:
                here = gain.get(task, 0.0) if isinstance(gain, dict) else gain
                for seed in range(seeds):
                    scores = outcomes(method, task, seed, here, count, draw)
                    cell = spec(method, task, seed, **changes)
                    about = {"group": GROUPS[task], "chance": CHANCE[task]} | (facts or {})
                    store.write(record(cell, scores, **about), scores, items(task, count))
    return Path(folder)
