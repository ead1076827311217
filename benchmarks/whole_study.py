"""A whole study on one GPU: a sample of its jobs as a loop over cells and in passes of ten seeds.

    python benchmarks/whole_study.py --device cuda

Both ways run in one process on the same cached hidden states. The sample is one job of each kind
of method (drawn by lot within the kind); each kind's time is multiplied by its number of jobs.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import replace

from rows import Row, chosen_device, finish
from sampled import jobs, run

from fusionbench.plan import Cell
from fusionbench.study import PAPER, Study


def kinds(study: Study) -> dict[str, list[tuple[Cell, ...]]]:
    """Jobs by method: the task matters little for time, the method much."""
    found = defaultdict(list)
    for job in jobs(study):
        if not job[0].task.encoder:
            found[job[0].chosen.label].append(job)
    return found


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", nargs="+", default=["*"])
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--steps", type=int, default=PAPER.budget.steps)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--encoder", default=PAPER.encoder)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    budget = replace(PAPER.budget, steps=asked.steps, lrs=(1e-3,))
    budget = replace(budget, image_size=0) if asked.encoder == "nano" else budget
    names = {"methods": tuple(asked.methods), "tasks": tuple(asked.tasks)}
    loop = replace(PAPER, encoder=asked.encoder, seeds=asked.seeds, budget=budget, **names)
    together = replace(loop, budget=replace(budget, seeds_per_pass=asked.seeds))
    one, other = kinds(loop), kinds(together)
    run([next(iter(one.values()))[0][:1]], str(device))  # the first call pays for what it loads
    totals = [0.0, 0.0]
    for label in one:
        which = random.Random(label).randrange(len(one[label]))
        for way, (study, seeds) in enumerate(((one, 1), (other, asked.seeds))):
            # One seed of the loop stands for all of them.
            job = study[label][which][:seeds]
            _, training = run([job], str(device))
            totals[way] += training * asked.seeds / seeds * len(study[label])
    cells = sum(len(job) for found in one.values() for job in found)
    note = f"{cells} cells extrapolated from {len(one)} jobs, {asked.steps} steps"
    rows = [Row(target="whole-study", plain=totals[0], ours=totals[1], unit="s", note=note)]
    finish("whole_study", rows, device)


if __name__ == "__main__":
    main()
