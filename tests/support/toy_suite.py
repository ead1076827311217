"""Suites of known outcomes as a run would leave them on disk, and the report's CSV read back."""

import csv
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
from scipy.special import ndtri
from toy_records import CODE, spec

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Request
from fusionbench.records.store import Items, Store
from fusionbench.report.build import SECTIONS, ReportOptions, write_report
from fusionbench.study.study import QUICK, as_plain

CONTROLS = {
    "penultimate": "none: it is a baseline itself",
    "repeat": "none: it is a control itself",
}
CHANCE = 0.25


@contextmanager
def quick_disk():
    """Records are complete without waiting for the disk; no test pulls the plug."""
    with mock.patch.object(os, "fsync", lambda _: None):
        yield


def items_of(task, count, images=None):
    """`images` names the image of each example; without it each has its own."""
    own = [f"{task}/image-{i}" for i in range(count)]
    return Items(
        names=tuple(f"{task}/{i:05d}" for i in range(count)),
        groups=tuple(own if images is None else map(str, images)),
    )


def cell(method, task, seed, scores, **facts):
    """A finished cell; its own identity unless `facts` says otherwise."""
    start = CellRecord(
        spec=replace(spec(method, task, seed), settings={}), status="done", label=method,
        family=method.partition("-")[0], representative="-" not in method,
        control=CONTROLS.get(method, "repeat"), group="fine",
        task_family=task, in_suite=True, chance=CHANCE, score=float(np.mean(scores)),
        examples=len(scores), parameters={"fusion": 10, "projector": 20, "reader": 30},
        provenance={"code": CODE, "method": "built-in", "task": "built-in"},
    )  # fmt: skip
    return replace(start, **facts)


def write_suite(folder, suite, *, images=None, study=None, **facts):
    """`suite[method][task]` holds outcomes (seed, example). Facts may be callables of a method."""
    with quick_disk(), Store.create(folder) as store:
        for method, tasks in suite.items():
            own = {k: v(method) if callable(v) else v for k, v in facts.items()}
            for task, table in tasks.items():
                put_task(store, method, task, table, images=(images or {}).get(task), **own)
        labels, tasks = tuple(suite), tuple(next(iter(suite.values())))
        plain = (
            as_plain(QUICK)
            | {"contrasts": []}
            | {"seeds": len(next(iter(tasks_of(suite)))[1])}
            | (study or {})
        )
        store.history.add(Request(study=plain, labels=labels, tasks=tasks))
    return folder


def tasks_of(suite):
    return next(iter(suite.values())).items()


def put_task(store, method, task, table, *, images=None, seeds=None, **facts):
    names = items_of(task, table.shape[1], images)
    for seed, scores in zip(seeds or range(len(table)), table, strict=True):
        values = np.asarray(scores, dtype=np.float32)
        store.write(cell(method, task, seed, values, **facts), values, names)


def rows(folder, out, table="contrasts", **wanted):
    """The rows of one table's CSV, written anew."""
    write_report(folder, out, ReportOptions(formats=("csv",), table=table, **wanted))
    return read(out, table)


def read(out, table):
    with (out / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def section(out, table):
    """The part of report.md that holds a table; KeyError without it."""
    parts = re.split(r"^## (.+)\n\n", (out / "report.md").read_text(), flags=re.MULTILINE)
    titles = {one.name: one.title for one in SECTIONS}
    return dict(zip(parts[1::2], parts[2::2], strict=True))[titles[table]]


def the(found, **facts):
    """The one row in which these columns have these values."""
    fitting = [row for row in found if all(row[key] == value for key, value in facts.items())]
    assert len(fitting) == 1, (facts, len(fitting))
    return fitting[0]


def numbers(row, *columns):
    return [float(row[column]) for column in columns]


def correlated(rng, shares, *, seeds=6, items=200, noise=0.5):
    """Right or wrong on the same images, as paired methods are; `shares` in the long run."""
    image = rng.standard_normal(items)
    found = {}
    for method, share in shares.items():
        latent = image + noise * rng.standard_normal((seeds, items))
        found[method] = (latent < ndtri(share) * np.hypot(1, noise)).astype(np.float32)
    return found
