"""Accuracy against processor seconds: the protocol before the ridge reader, and the quick study's.

    python benchmarks/accuracy_seconds.py
    python benchmarks/accuracy_seconds.py --goals results/quick --methods

Plain: 28 steps of 32 with AdamW 0.005, the attentive reader without positions, a bootstrap of 512
examples. Ours: the budget of the preset `quick`. Both train the same methods on the same tasks in
one process on one thread, task by task in turn; hidden states are encoded before and belong to
neither. Scores are means over the suite's tasks of the test score in percent; seconds are those of
one cell, training and scoring.

`--goals DIR` prints, from a results folder, the mean of the best single layer over the suite's
tasks, how many tasks are sensitive and how many planned contrasts are decided.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rows import Row, finish
from sampled import _encoding, _training, empty_cache, jobs

from fusionbench.launchers.runner import Runner
from fusionbench.records.cell import Budget, RunOptions
from fusionbench.records.pairs import Results
from fusionbench.records.references import references
from fusionbench.records.scores import INSENSITIVE, ScoreTable
from fusionbench.records.store import Store
from fusionbench.report.build import analyses_of
from fusionbench.report.contrasts import ContrastRow
from fusionbench.stats.verdicts import Verdict
from fusionbench.study.plan import Cell
from fusionbench.study.study import QUICK, Study

METHODS = ("penultimate", "scalar_mix", "dense_connector-dci", "mema")
BEFORE = Budget(steps=28, batch=32, lrs=(5e-3,), train_items=512, val_items=128, test_items=448)
NOW = QUICK.budget
WAYS: Mapping[str, Budget] = {"before": BEFORE, "now": NOW}
Found = dict[tuple[str, str], list[tuple[float, float]]]
"""(method, way) -> score in percent and seconds of each cell."""


def by_task(study: Study) -> dict[str, list[tuple[Cell, ...]]]:
    """The jobs of each task of the suite; planted tasks are left out."""
    found = defaultdict(list)
    for job in jobs(study):
        if job[0].task.in_suite:
            found[job[0].spec.task].append(job)
    return found


def run_timed(runner: Runner, job: Sequence[Cell]) -> list[tuple[float, float]]:
    """Score in percent and processor seconds of each cell; RuntimeError for one that fails."""
    runner._materials_of(_training(job))
    started = time.process_time()
    for event in runner.run(_training(job)):
        if event.kind == "failed":
            raise RuntimeError(event.text)
    seconds = (time.process_time() - started) / len(job)
    records = [runner.store.find(cell.spec.id) for cell in job]
    return [(100 * float(one.score or 0.0), seconds) for one in records if one]


def measure(asked: argparse.Namespace) -> tuple[Found, list[str]]:
    """Both ways on every task, and the names of the tasks."""
    study = replace(QUICK, methods=tuple(asked.methods), tasks=tuple(asked.tasks),
                    seeds=asked.seeds, contrasts=(), references=False)  # fmt: skip
    ways = {name: by_task(replace(study, budget=budget)) for name, budget in WAYS.items()}
    found: Found = defaultdict(list)
    tasks = list(ways["now"])
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        Store.create(folder)
        # A runner keeps the materials of a task, budget included: each way has its own.
        runners = {name: Runner(RunOptions(out=folder, device="cpu")) for name in ways}
        for task in tasks:
            for name, todo in ways.items():
                runner = runners[name]
                runner.encode(_encoding([cell for job in todo[task] for cell in job]))
                for job in todo[task]:
                    if task == tasks[0]:
                        # What is imported and allocated once belongs to no cell.
                        _warm(job)
                    found[job[0].chosen.label, name] += run_timed(runner, job)
    return found, tasks


def _warm(job: Sequence[Cell]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Store.create(folder)
        run_timed(Runner(RunOptions(out=folder, device="cpu")), job[:1])


def rows_of(found: Found, tasks: int, seeds: int) -> list[Row]:
    """Scores and seconds of each method, and of all of them."""
    labels = list(dict.fromkeys(label for label, _ in found))
    everything = {way: [one for label in labels for one in found[label, way]] for way in WAYS}
    pairs = {label: [found[label, way] for way in WAYS] for label in labels}
    pairs["all"] = list(everything.values())
    note, rows = f"{tasks} tasks, {seeds} seeds", []
    for label, values in pairs.items():
        (score, seconds), (ours, spent) = (np.mean(side, axis=0) for side in values)
        rows += [
            Row(target=f"score={label}", plain=score, ours=ours, unit="%", note=note),
            Row(target=f"seconds={label}", plain=seconds, ours=spent, unit="s a cell", note=note),
        ]
    rows.append(replace(rows[-2], target="quick-accuracy", note=f"{note}: {', '.join(labels)}"))
    return rows


# The goals of the quick study, from a folder of results.


def best_layer(table: ScoreTable) -> tuple[int, float]:
    """The single layer with the highest mean score over the suite's tasks, and that mean.

    Over all tasks of the suite, insensitive ones too. Raises SystemExit without single layers.
    """
    found = [one for column, one in references(table).items() if table.tasks[column].in_suite]
    if not found:
        raise SystemExit("the folder has no single layers with the ridge reader")
    shared = set.intersection(*(set(one.layers) for one in found))
    means = {layer: float(np.mean([one.layers[layer] for one in found])) for layer in shared}
    best = max(sorted(means), key=lambda layer: means[layer])
    return best, means[best]


def goals(folder: Path) -> list[str]:
    """A line for each goal and condition."""
    lines = []
    for analysis in analyses_of(Results.open(folder)):
        table = analysis.table
        layer, mean = best_layer(table)
        tasks = [task for task in table.tasks if task.in_suite]
        weak = [task.name for task in tasks if task.mark == INSENSITIVE]
        planned = analysis.of("planned")
        open_ = {"", Verdict.UNDECIDED}
        decided = [row for row in planned if row.answer.verdict not in open_]
        lines += [
            f"{table.condition.title}, {len(table.seeds)} seeds",
            f"  best single layer: hs[{layer}], mean over {len(tasks)} tasks {100 * mean:.1f} % "
            "(goal: 66)",
            f"  sensitive tasks: {len(tasks) - len(weak)} of {len(tasks)} (goal: 9 of 11)"
            + (f"; insensitive: {', '.join(weak)}" if weak else ""),
            f"  planned contrasts decided: {len(decided)} of {len(planned)} (goal: 6)",
            *(_verdict(row) for row in planned),
        ]  # fmt: skip
    return lines


def _verdict(row: ContrastRow) -> str:
    word = row.answer.verdict or "no test"
    return f"    {row.contrast.method} - {row.contrast.baseline}: {word}"


def main() -> None:
    """Print the goals of a folder, then measure; without methods nothing is measured."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--goals", type=Path, help="A folder of results.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.goals:
        print("\n".join(goals(asked.goals)), flush=True)
    if asked.methods:
        found, tasks = measure(asked)
        rows = rows_of(found, len(tasks), asked.seeds)
        finish("accuracy_seconds", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
