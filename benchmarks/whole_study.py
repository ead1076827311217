"""A whole study on one GPU: a sample of its jobs as a loop over cells and in passes of ten seeds.

    python benchmarks/whole_study.py --device cuda

Both ways run in one process on the same cached hidden states. The sample is one job of each method
(its task drawn by lot), trained for a few steps, for a few again, and for more: the first pays for
what is loaded and compiled once, and the line through the other two leads to the study's steps. A
method's time is multiplied by its number of jobs. The encoder has random weights where none is
named: time does not depend on them.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rows import Row, chosen_device, finish, parser_of, partial_results
from sampled import jobs, run

from fusionbench.study.plan import Cell
from fusionbench.study.study import PAPER, Study

Jobs = dict[str, list[tuple[Cell, ...]]]


def kinds(study: Study) -> Jobs:
    """Jobs by method: the task matters little for time, the method much."""
    found = defaultdict(list)
    for job in jobs(study):
        if not job[0].task.encoder:
            found[job[0].chosen.label].append(job)
    return found


def extrapolated(few: float, more: float, sampled: Sequence[int], steps: int) -> float:
    """Seconds of `steps` steps, from the seconds of the two trainings that were sampled."""
    rate = (more - few) / (sampled[1] - sampled[0])
    return few + max(rate, 0.0) * (steps - sampled[0])


def measure(
    ways: Mapping[int, Sequence[Jobs]], label: str, asked: argparse.Namespace
) -> list[float]:
    """Seconds of all jobs of a method, as a loop and in passes, from one job each."""
    found = []
    # One seed of the loop stands for all of them.
    for way, some in enumerate((1, asked.seeds)):
        count = len(ways[asked.sampled[0]][way][label])
        which = random.Random(label).randrange(count)

        def seconds(steps: int, way: int = way, which: int = which, some: int = some) -> float:
            job = ways[steps][way][label][which][:some]
            return run([job], asked.device, compile=asked.compile if way else "auto")[1]

        seconds(asked.sampled[0])
        few, more = (seconds(steps) for steps in asked.sampled)
        one = extrapolated(few, more, asked.sampled, asked.steps)
        found.append(one * asked.seeds / some * count)
    return found


def both_ways(asked: argparse.Namespace, steps: int) -> list[Jobs]:
    """The study's jobs as a loop over cells and in passes, with this many steps."""
    budget = replace(PAPER.budget, steps=steps, lrs=(1e-3,))
    budget = replace(budget, image_size=0) if asked.encoder == "nano" else budget
    names = {"methods": tuple(asked.methods), "tasks": tuple(asked.tasks)}
    study = replace(PAPER, encoder=asked.encoder, seeds=asked.seeds, **names)
    return [
        kinds(replace(study, budget=replace(budget, seeds_per_pass=together)))
        for together in (1, asked.seeds)
    ]


def main() -> None:
    """Print and write the row, once every method has been measured."""
    asked = _arguments()
    device = chosen_device(asked.device)
    asked.device = str(device)
    ways = {steps: both_ways(asked, steps) for steps in asked.sampled}
    jobs_of = ways[asked.sampled[0]][0]
    state = partial_results("whole_study", device)
    asked_for = [asked.encoder, asked.steps, asked.sampled, asked.seeds, sorted(jobs_of)]
    asked_for.append(asked.compile)
    before = json.loads(state.read_text()) if state.exists() else {}
    found = before.get("found", {}) if before.get("asked") == asked_for else {}
    _keep(state, asked_for, found)
    started = time.monotonic()
    for label in jobs_of:
        if time.monotonic() - started > 60 * asked.minutes:
            break
        if label not in found:
            try:
                found[label] = measure(ways, label, asked)
            except RuntimeError as error:  # a method that fails hinders no other, and is named
                print(f"{label}: {error}")
                found[label] = []
            _keep(state, asked_for, found)
    if missing := set(jobs_of) - set(found):
        print(f"{len(found)} methods measured, {len(missing)} left: run again")
        return
    finish("whole_study", [_row(jobs_of, found, asked)], device)
    state.unlink()


def _row(jobs_of: Jobs, found: Mapping[str, list[float]], asked: argparse.Namespace) -> Row:
    """The sums over all methods that could be measured; the note names the others."""
    measured = {label: times for label, times in found.items() if times}
    cells = sum(len(job) for label in measured for job in jobs_of[label])
    plain, ours = (sum(times) for times in zip(*measured.values(), strict=True))
    few, more = asked.sampled
    sample = f"{len(measured)} jobs, {few} and {more} of {asked.steps} steps"
    sample += "" if asked.compile == "auto" else f", passes with --compile {asked.compile}"
    failed = ", ".join(label for label in found if label not in measured)
    note = f"{cells} cells extrapolated from {sample}" + (f"; without {failed}" if failed else "")
    return Row(target="whole-study", plain=plain, ours=ours, unit="s", note=note)


def _keep(state: Path, asked_for: list, found: dict[str, list[float]]) -> None:
    """Whole or not at all: the process may be stopped at any moment."""
    whole = state.with_suffix(".tmp")
    whole.write_text(json.dumps({"asked": asked_for, "found": found}))
    whole.replace(state)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--methods", nargs="+", default=["all"])
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--steps", type=int, default=PAPER.budget.steps)
    parser.add_argument("--sampled", type=int, nargs=2, default=[20, 80], help="Steps measured.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--encoder", default="random-dinov2-s", help="Or dinov2-small, nano.")
    parser.add_argument("--compile", default="auto", help="Of the passes, as `run` takes it.")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="Stop here; go on when run again."
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
