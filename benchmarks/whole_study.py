"""A whole study on one GPU: a sample of its jobs as a loop over cells and in passes of ten seeds.

    python benchmarks/whole_study.py --device cuda

Both ways run in one process on the same cached hidden states. The sample is one job of each kind
of method (drawn by lot within the kind); each kind's time is multiplied by its number of jobs. The
encoder has random weights where none is named: time does not depend on them.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rows import Row, chosen_device, finish, partial_results
from sampled import jobs, run

from fusionbench.plan import Cell
from fusionbench.study import PAPER, Study

Jobs = dict[str, list[tuple[Cell, ...]]]


def kinds(study: Study) -> Jobs:
    """Jobs by method: the task matters little for time, the method much."""
    found = defaultdict(list)
    for job in jobs(study):
        if not job[0].task.encoder:
            found[job[0].chosen.label].append(job)
    return found


def measure(ways: Sequence[Jobs], label: str, seeds: int, device: str) -> list[float]:
    """Seconds of all jobs of a method, as a loop and in passes, from one job each."""
    which = random.Random(label).randrange(len(ways[0][label]))
    found = []
    for jobs_of, some in zip(ways, (1, seeds), strict=True):
        # One seed of the loop stands for all of them.
        _, training = run([jobs_of[label][which][:some]], device)
        found.append(training * seeds / some * len(jobs_of[label]))
    return found


def main() -> None:
    """Print and write the row, once every method has been measured."""
    asked = _arguments()
    device = chosen_device(asked.device)
    budget = replace(PAPER.budget, steps=asked.steps, lrs=(1e-3,))
    budget = replace(budget, image_size=0) if asked.encoder == "nano" else budget
    names = {"methods": tuple(asked.methods), "tasks": tuple(asked.tasks)}
    loop = replace(PAPER, encoder=asked.encoder, seeds=asked.seeds, budget=budget, **names)
    together = replace(loop, budget=replace(budget, seeds_per_pass=asked.seeds))
    ways = [kinds(loop), kinds(together)]
    state = partial_results("whole_study", device)
    asked_for = [asked.encoder, asked.steps, asked.seeds, sorted(ways[0])]
    before = json.loads(state.read_text()) if state.exists() else {}
    found = before.get("found", {}) if before.get("asked") == asked_for else {}
    state.write_text(json.dumps({"asked": asked_for, "found": found}))
    started = time.monotonic()
    run([next(iter(ways[0].values()))[0][:1]], str(device))  # the first pays for what it loads
    for label in ways[0]:
        if time.monotonic() - started > 60 * asked.minutes:
            break
        if label not in found:
            found[label] = measure(ways, label, asked.seeds, str(device))
            state.write_text(json.dumps({"asked": asked_for, "found": found}))
    if missing := set(ways[0]) - set(found):
        print(f"{len(found)} methods measured, {len(missing)} left: run again")
        return
    cells = sum(len(job) for jobs_of in ways[0].values() for job in jobs_of)
    plain, ours = (sum(times) for times in zip(*found.values(), strict=True))
    note = f"{cells} cells extrapolated from {len(found)} jobs, {asked.steps} steps"
    row = Row(target="whole-study", plain=plain, ours=ours, unit="s", note=note)
    finish("whole_study", [row], device)
    state.unlink()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", nargs="+", default=["*"])
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--steps", type=int, default=PAPER.budget.steps)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--encoder", default="random-dinov2-s", help="Or dinov2-small, nano.")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="Stop here; go on when run again."
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
