"""Time and memory of a report of 100,000 synthetic records, as live files and in the compact form.

    python benchmarks/report_size.py --methods 50 --tasks 20 --seeds 20 --encoders 5

Every record has its own outcomes (probit: methods, images and runs differ), so nothing in the
report is trivial. Records are written without the store's fsync, which is not what is measured;
their bytes are the store's. Time includes reading the folder for the first time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rows import Row, finish

from fusionbench.records.archive import CELLS
from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.records.files import sha256_of
from fusionbench.records.folder import make
from fusionbench.records.history import History, Request
from fusionbench.records.merge import merge
from fusionbench.records.schema import full_text
from fusionbench.records.store import Items, encode
from fusionbench.study.study import PAPER, as_plain

TRACE = {"layer_weights": [0.1] * 12}
CODE = {"code": {"fusionbench": "0.1.0", "commit": "c0ffee0", "dirty": False}}


def main() -> None:
    """Write records and merge them; report on both forms, each in a process of its own."""
    sizes = _arguments()
    with tempfile.TemporaryDirectory() as place:
        live, compact = Path(place) / "live", Path(place) / "compact"
        count = write_records(live, **sizes)
        merge([live], compact)
        cores = len(os.sched_getaffinity(0))
        note = f"{count} records, {cores} cores; lines parsed alone: {parsed(compact):.1f} s"
        seconds, memory = zip(timed(live), timed(compact), strict=True)
    rows = [
        Row(target="report", plain=seconds[0], ours=seconds[1], unit="s", note=note),
        Row(target="report-memory", plain=memory[0], ours=memory[1], unit="GiB", note=note),
    ]
    finish("report_size", rows, torch.device("cpu"))


def parsed(folder: Path) -> float:
    """Seconds to parse the lines of the compact form as JSON and do nothing else."""
    began = time.perf_counter()
    with (folder / CELLS).open(encoding="utf-8") as lines:
        for line in lines:
            json.loads(line)
    return time.perf_counter() - began


def timed(folder: Path) -> tuple[float, float]:
    """Seconds and GiB of a report."""
    began = time.perf_counter()
    memory = report(folder)
    return time.perf_counter() - began, memory


def report(folder: Path) -> float:
    """Run the command; the most memory of all of its processes together, in GiB."""
    command = [sys.executable, "-m", "fusionbench", "report", str(folder)]
    root = Path(__file__).resolve().parent.parent
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root) as started:
        while started.poll() is None:
            peak = max(peak, sum(map(_share, _family(started.pid))))
            time.sleep(0.25)
    if started.returncode:
        raise subprocess.CalledProcessError(started.returncode, command)
    return peak / 2**20


def _family(process: int) -> list[int]:
    """A process and the copies that it made of itself."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return [process]
    return [process, *map(int, children)]


def _share(process: int) -> int:
    """KiB that a process has for itself, and its part of those it shares with its copies."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def write_records(  # noqa: PLR0913  (one argument for each axis)
    folder: Path, *, methods: int, tasks: int, seeds: int, encoders: int, examples: int
) -> int:
    """A folder of results with every cell of the grid; how many there are."""
    make(folder)
    rng = np.random.default_rng(0)
    labels = ["penultimate", "repeat", *(f"method_{i:02d}" for i in range(methods - 2))]
    names = [f"task_{i:02d}" for i in range(tasks)]
    for encoder in range(encoders):
        for number, task in enumerate(names):
            items = _items(folder, task, examples)
            image = rng.standard_normal(examples)
            for level, label in enumerate(labels):
                own = image + 0.4 * rng.standard_normal(examples) + 0.01 * level
                for seed in range(seeds):
                    scores = own + rng.standard_normal(examples) + 0.1 * rng.standard_normal() > 0
                    spec = _spec(label, task, seed, f"encoder-{encoder}")
                    _write(folder, spec, scores.astype(np.float32), items, number)
    study = replace(PAPER, seeds=seeds)
    run = Request(study=as_plain(study), labels=tuple(labels), tasks=tuple(names))
    History(folder / "study.json").add(run)
    return methods * tasks * seeds * encoders


def _items(folder: Path, task: str, examples: int) -> str:
    items = Items(
        names=tuple(f"{task}/test/{i:05d}" for i in range(examples)),
        groups=tuple(f"{task}/image-{i}" for i in range(examples)),
    )
    (folder / "items" / f"{items.hash}.json").write_text(items.to_json())
    return items.hash


def _spec(label: str, task: str, seed: int, encoder: str) -> CellSpec:
    return CellSpec(
        encoder=encoder, weights="w", method=label, method_version=1, settings={"width": 16},
        task=task, task_version=1, data="d" * 64, budget=PAPER.budget, seed=seed,
    )  # fmt: skip


def _write(folder: Path, spec: CellSpec, scores: np.ndarray, items: str, number: int) -> None:
    control = (
        "none: it is a control itself" if spec.method in ("penultimate", "repeat") else "repeat"
    )
    outcomes = folder / "outcomes" / f"{spec.id}.bin"
    outcomes.write_bytes(encode(scores))
    record = CellRecord(
        spec=spec, status="done", label=spec.method, family=spec.method, control=control,
        group=("fine", "semantic")[number % 2], task_family=spec.task, in_suite=True, chance=0.25,
        score=float(scores.mean()), examples=len(scores), items=items,
        outcomes=sha256_of(outcomes), lr=1e-3, taps=tuple((i,) for i in range(12)), trace=TRACE,
        parameters={"fusion": 1000, "projector": 2000, "reader": 3000, "encoder": 10**7},
        loss=tuple(np.linspace(2, 1, 21).tolist()), provenance=CODE,
    )  # fmt: skip
    (folder / "cells" / f"{spec.id}.json").write_text(full_text(record))


def _arguments() -> dict[str, int]:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"methods": 50, "tasks": 20, "seeds": 20, "encoders": 5, "examples": 256}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
