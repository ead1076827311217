"""What a person waits for before any work: `--help`, `list`, and the plan of a huge study.

python benchmarks/start_and_plan.py
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from rows import Row, finish

from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import QUICK

TURNS = 7
CELLS, DONE = 100_000, 0.9


def start(arguments: Sequence[str], turns: int) -> float:
    """Seconds of a command, the median of several turns after a first."""
    found = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:] or found)


def plan_rows(wanted: int = CELLS, tasks: Sequence[str] = QUICK.tasks) -> list[Row]:
    """A study of so many cells of which nine in ten have a record."""
    catalog = read_catalog()
    one = make_plan(resolve(replace(QUICK, seeds=1, tasks=tuple(tasks)), catalog), ())
    study = replace(QUICK, tasks=tuple(tasks), seeds=wanted // len(one.cells) + 1)
    started = time.perf_counter()
    cells = make_plan(resolve(study, catalog), ()).cells
    fresh = time.perf_counter() - started
    done = {cell.spec.id for cell in cells[: round(DONE * len(cells))]}
    started = time.perf_counter()
    plan = make_plan(resolve(study, catalog), done)
    jobs = sum(1 for _ in plan.jobs())
    again = time.perf_counter() - started
    note = f"{len(plan.cells)} cells, {plan.finished} done, {jobs} jobs left"
    return [Row(target="plan", plain=fresh, ours=again, unit="s", note=note)]


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--tasks", nargs="+", default=QUICK.tasks)
    asked = parser.parse_args()
    bare = start(["-c", "pass"], asked.turns)
    commands = (["--help"], ["list", "methods"], ["list", "tasks"])
    rows = [
        Row(target="start", plain=bare, unit="s", note=f"fusionbench {' '.join(words)}",
            ours=start(["-m", "fusionbench", *words], asked.turns))
        for words in commands
    ]  # fmt: skip
    finish("start_and_plan", [*rows, *plan_rows(asked.cells, asked.tasks)], torch.device("cpu"))


if __name__ == "__main__":
    main()
