"""The quick study on one CPU thread: hidden states cached, or encoded again for every cell.

    python benchmarks/quick_study.py --task scenes_count --sample 8

Jobs of one task, drawn by lot, run both ways in one process. The plain way encodes what its cell
needs, for each cell; ours encodes once for all methods of the task. Both are extrapolated to all
cells of the task.
"""

import argparse
import random
from dataclasses import replace

import torch
from rows import Row, finish
from sampled import empty_cache, encode, jobs, run

from fusionbench.study.study import QUICK


def main() -> None:
    """Print and write the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="scenes_count")
    parser.add_argument("--sample", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = jobs(replace(QUICK, tasks=(asked.task,)))
    sample = random.Random(0).sample(found, min(asked.sample, len(found)))
    cells, all_cells = (sum(len(job) for job in some) for some in (sample, found))
    plain = 0.0
    for job in sample:
        for cell in job:
            with empty_cache():
                plain += sum(run([[cell]], "cpu"))
    with empty_cache():
        encoding = encode([cell for job in found for cell in job], "cpu")
        reading, training = run(sample, "cpu")
    ours = encoding + (reading + training) * all_cells / cells
    plain *= all_cells / cells
    note = f"{asked.task}: {all_cells} cells from {cells}; encoding {encoding:.1f} s once"
    row = Row(target="quick-study", plain=plain, ours=ours, unit="s a task", note=note)
    finish("quick_study", [row], torch.device("cpu"))


if __name__ == "__main__":
    main()
