"""Seeds of Mema, reader included: the frozen encoder shared by all seeds of a pass.

python benchmarks/seeds_in_encoder.py --device cuda
"""

import time
from dataclasses import replace

import torch
from rows import Row, chosen_device, finish, parser_of
from workload import find, materials

from fusionbench.harness import passes as several
from fusionbench.harness import train as one
from fusionbench.harness.frozen import compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember
from fusionbench.harness.pipeline import subject
from fusionbench.harness.train import schedule
from fusionbench.records.cell import Budget
from fusionbench.study.study import PAPER

WAYS = {"loop": "", "blocks": "", "steps": "default"}
"""One seed after the other; in one pass with compiled blocks; with whole steps compiled."""
WARM = 10
"""Steps of each training before the clock starts: building, comparing and compiling are over."""
_LOOPED = 2


class StepClock:
    """Starts at step `WARM` of a training, told by the call for the learning rate's share."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.total = device, 0.0, 0.0

    def schedule(self, step: int, budget: Budget) -> float:
        """In place of the engine's."""
        if step == WARM and not self.started:
            self.started = self._now()
        return schedule(step, budget)

    def stop(self) -> None:
        """At the end of a training."""
        self.total += self._now() - self.started
        self.started = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def speeds(method: str, counts: list[int], budget: Budget, device: torch.device, way: str):
    """Samples per second for each number of seeds; None from where the memory does not suffice."""
    torch.compiler.reset()
    cls, settings = find(method)
    encoder, _ = subject("shape:dinov2-s-14", image_size=112, device=device, dtype=torch.float32)
    if way != "loop" and device.type == "cuda":
        compile_blocks(encoder)
    shared = materials(encoder, cls, settings, budget, device=device)
    shared.compiled = WAYS[way]
    for count in counts:
        # One after the other: a sample takes as long whether two or ten follow each other.
        count = min(count, _LOOPED) if way == "loop" else count  # noqa: PLW2901
        clock = StepClock(device)
        one.schedule = several.schedule = clock.schedule
        runs = [PassMember(seed=seed, lr=1e-3) for seed in range(count)]
        models = [build_model(cls, settings, shared, run.seed) for run in runs]
        try:
            _train(models, shared, runs, clock, together=way != "loop")
        except torch.OutOfMemoryError:
            yield None
            continue
        yield count * (budget.steps - WARM) * budget.batch / clock.total


def _train(models, shared, runs, clock: StepClock, *, together: bool) -> None:
    if together:
        several.train_together(models, shared, runs)
        clock.stop()
        return
    for model, run in zip(models, runs, strict=True):
        one.train(model, shared, run.seed, run.lr)
        clock.stop()


def main() -> None:
    """An eager loop over seeds, and one pass, in one run."""
    parser = parser_of(__doc__)
    parser.add_argument("--method", default="mema")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 5, 10, 16, 32])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=["blocks", "steps"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    budget = replace(PAPER.budget, steps=asked.steps, batch=asked.batch, lrs=(1e-3,))
    found = {
        way: list(speeds(asked.method, asked.seeds, budget, device, way))
        for way in ("loop", *asked.ways)
    }
    rows = [
        Row(target=f"seeds={count}", plain=found["loop"][at], ours=found[way][at],
            unit="samples/s", note=f"{asked.method}, {way}")
        for way in asked.ways
        for at, count in enumerate(asked.seeds)
        if found[way][at] and found["loop"][at]
    ]  # fmt: skip
    best = max(rows, key=lambda row: row.ours)
    note = f"{best.note}, {best.target}"
    rows.append(Row(target="mema-seeds", plain=best.plain, ours=best.ours, unit=best.unit,
                    note=note))  # fmt: skip
    usual = asked.ways == ["blocks", "steps"]
    finish("-".join(["seeds_in_encoder", *([] if usual else asked.ways)]), rows, device)


if __name__ == "__main__":
    main()
