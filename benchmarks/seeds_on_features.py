"""Seeds of a post-encoder method on cached features: one pass against one seed, and the loop.

python benchmarks/seeds_on_features.py --device cuda
"""

import torch
from rows import Row, chosen_device, finish, parser_of
from workload import find, materials, seconds, small_budget, small_encoder

from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, evaluate_together, train_together
from fusionbench.harness.train import evaluate, train
from fusionbench.records.cell import Budget, RunOptions

CURVE = (1, 2, 3, 5, 8, 10, 16, 32)


def compare(
    name: str,
    budget: Budget,
    seeds: int,
    device: torch.device,
    *,
    looped: int = 0,
) -> tuple[float, float]:
    """Seconds of a loop over `looped` seeds (or all) and of one pass, the better of two turns."""
    method, settings = find(name)
    shared = materials(small_encoder(device), method, settings, budget, device=device)
    runs = [PassMember(seed=seed, lr=budget.lrs[0]) for seed in range(seeds)]

    def models() -> list:
        return [build_model(method, settings, shared, run.seed) for run in runs]

    def loop() -> None:
        some = runs[: looped or seeds]
        for run in some:
            model = build_model(method, settings, shared, run.seed)
            train(model, shared, run.seed, run.lr)

    turns = [
        (seconds(loop, device), seconds(lambda: train_together(models(), shared, runs), device))
        for _ in range(3)
    ][1:]
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def compare_scoring(
    name: str, budget: Budget, seeds: int, device: torch.device
) -> tuple[float, float]:
    """Seconds to score these seeds one by one and in one pass, the better of two turns each."""
    method, settings = find(name)
    shared = materials(small_encoder(device), method, settings, budget, device=device)
    models = [build_model(method, settings, shared, seed) for seed in range(seeds)]
    batch = RunOptions().eval_batch

    def loop() -> None:
        for model in models:
            evaluate(model, shared, "test", batch)

    def together() -> None:
        evaluate_together(models, shared, "test", batch)

    turns = [(seconds(loop, device), seconds(together, device)) for _ in range(3)][1:]
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def main() -> None:
    """Print and write the rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--methods", nargs="+", default=["scalar_mix", "dense_connector-dci", "mmfuser"]
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--points", nargs="+", type=int, default=CURVE, help="Of the curve.")
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    torch.set_num_threads(1)
    budget = small_budget(device, asked.steps, 3e-3)
    rows = []
    for name in asked.methods:
        steps = f"{asked.steps} steps"
        if asked.seeds == 10:
            one, together = compare(name, budget, asked.seeds, device, looped=1)
            rows.append(Row(target="ten-seeds", plain=one, ours=together, unit="s",
                            note=f"{name}, one seed against ten, {steps}"))  # fmt: skip
        else:
            loop, together = compare(name, budget, asked.seeds, device)
            rows.append(Row(target="seed-loop-cpu", plain=loop, ours=together, unit="s",
                            note=f"{name}, {asked.seeds} seeds, {steps}"))  # fmt: skip
        loop, together = compare_scoring(name, budget, asked.seeds, device)
        rows.append(Row(target="scoring-seeds", plain=loop, ours=together, unit="s",
                        note=f"{name}, {asked.seeds} seeds"))  # fmt: skip
    for seeds in asked.points if asked.curve else ():
        loop, together = compare(asked.methods[0], budget, seeds, device)
        rows.append(Row(target=f"seeds={seeds}", plain=loop, ours=together, unit="s",
                        note=asked.methods[0]))  # fmt: skip
    finish(f"seeds_on_features-{asked.seeds}", rows, device)


if __name__ == "__main__":
    main()
