"""A small task on the toy encoder, ready to be trained on: the materials of a cell in memory."""

from dataclasses import replace

import numpy as np
import torch
from toy_encoder import SHAPE, ToyEncoder

from fusionbench.api.fusion import Fusion, Method, Tap
from fusionbench.api.tasks import Split, Task, TaskData
from fusionbench.harness.bundle import cut
from fusionbench.harness.cell import PassCell, Tuned
from fusionbench.harness.materials import Materials, QuestionTable
from fusionbench.harness.model import build_model, seeded_fusion, shape_of
from fusionbench.harness.passes import PassMember, run_pass, train_together
from fusionbench.harness.stepping import taps_of
from fusionbench.harness.train import evaluate, train
from fusionbench.models.encoders.features import FeatureKey, encode
from fusionbench.records.cell import Budget, CellRecord, CellSpec
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

BUDGET = Budget(steps=12, batch=16, lrs=(3e-3,), reader_width=16, query_dim=SHAPE.query_dim)


class PixelToyEncoder(ToyEncoder):
    """The toy encoder behind a fixed random embedding of small images."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.reshape(len(images), -1).float() / 255
        rng = torch.Generator().manual_seed(3)
        width = self.shape.tokens * self.shape.dim
        table = torch.randn(flat.shape[1], width, generator=rng)
        return (flat @ table).reshape(-1, self.shape.tokens, self.shape.dim)


class BrightHalf(Task):
    """Which half of a small image is brighter; two questions about each image."""

    chance = 0.5

    def load(self) -> TaskData:
        rng = np.random.default_rng(5)
        images = rng.integers(0, 60, size=(90, 4, 4, 3)).astype(np.uint8)
        left = np.arange(90) % 2
        images[left == 1, :, :2] += 120
        images[left == 0, :, 2:] += 120
        return TaskData(
            images=images,
            answers=("no", "yes"),
            train=_split(left, range(0, 50)),
            val=_split(left, range(50, 60)),
            test=_split(left, range(60, 90)),
        )


def _split(left: np.ndarray, rows: range) -> Split:
    images = np.repeat(np.array(rows), 2)
    asks_left = np.tile([1, 0], len(rows))
    return Split(
        items=tuple(f"{image}-{ask}" for image, ask in zip(images, asks_left, strict=True)),
        images=images,
        questions=tuple(f"is the {'left' if ask else 'right'} half bright?" for ask in asks_left),
        answers=(left[images] == asks_left).astype(np.int64),
    )


def materials(
    taps: list[Tap], budget: Budget = BUDGET, *, name: str = "bright_half", device: str = "cpu"
) -> Materials:
    encoder = PixelToyEncoder()
    bundle, images = cut("bright_half", BrightHalf().load(), budget)
    key = FeatureKey(
        weights="toy", size=4, images=bundle.images, count=bundle.count, precision="fp32",
        dtype=budget.feature_dtype,
    )  # fmt: skip
    encode(encoder, images, key, taps, limit_gib=1)
    return Materials(
        name=name, task=BrightHalf(), bundle=bundle, budget=budget, key=key,
        shape=replace(encoder.shape, query_dim=budget.query_dim), device=torch.device(device),
        encoder=encoder.to(device),
    )  # fmt: skip


EVERY_TAP: list[Tap] = [(i,) for i in range(SHAPE.layers + 1)]


def spec(method: str = "toy", seed: int = 0, **settings: bool | int | float | str) -> CellSpec:
    return CellSpec(
        encoder="toy", weights="toy", method=method, method_version=1, settings=settings,
        task="bright_half", task_version=1, data="d", budget=BUDGET, seed=seed,
    )  # fmt: skip


def run_cell(
    spec: CellSpec, method: type[Method], materials: Materials, *, tuned: Tuned, eval_batch: int
) -> tuple[CellRecord, np.ndarray]:
    """A pass of one."""
    member = PassCell(spec=spec, tuned=tuned)
    (outcome,) = run_pass(method, materials, [member], eval_batch=eval_batch)
    if isinstance(outcome, FloatingPointError):
        raise outcome
    return outcome


def train_cell(
    method: type[Method], seed: int = 0, steps: int = 12, **settings: bool | int | float | str
) -> tuple[CellRecord, np.ndarray]:
    shape = shape_of(SHAPE, settings, BUDGET)
    fusion = seeded_fusion(method, settings, shape, stream=("bright_half", seed))
    shared = materials(list(taps_of(fusion)), replace(BUDGET, steps=steps))
    tuned = Tuned(lr=1e-2, scores={})
    return run_cell(spec("toy", seed, **settings), method, shared, tuned=tuned, eval_batch=16)


# Passes over the toy task: the same models trained one by one and together.

KINDS = ("scalar_mix", "dense_connector-sti", "alf", "mema", "mema-readout", "lsf_internal_modular")


MORE = (
    "penultimate", "vip_llava", "mmfuser", "tgif-leaky", "come_vl", "mema-repaired", "dla",
    "mrla-base", "qwen3vl_deepstack", "mema[question=shuffled]",
)  # fmt: skip


RUNS = [PassMember(seed=seed, lr=lr) for lr in (3e-3, 1e-2) for seed in (0, 1)]


def shared_by(method, settings, budget=BUDGET, device="cpu"):
    shape = shape_of(SHAPE, settings, budget)
    fusion = seeded_fusion(method, settings, shape, stream=("bright_half", 0))
    return materials(list(taps_of(fusion)), budget, device=device)


def named(name):
    (chosen,) = select_methods(read_catalog(), (name,), {})
    return load_method(chosen.card), dict(chosen.settings)


def both_ways(name, budget=BUDGET, runs=RUNS, device="cpu"):
    method, settings = named(name)
    shared = shared_by(method, settings, budget, device)
    alone, together = (
        [build_model(method, settings, shared, run.seed) for run in runs] for _ in range(2)
    )
    expected = [train(m, shared, run.seed, run.lr) for m, run in zip(alone, runs, strict=True)]
    found = train_together(together, shared, runs)
    same = [
        evaluate(one, shared, "test", 64)[0] == evaluate(other, shared, "test", 64)[0]
        for one, other in zip(alone, together, strict=True)
    ]
    return expected, found, np.concatenate(same).mean()


def in_double(shared):
    gather = shared.states
    shared.states = lambda rows: lambda taps: gather(rows)(taps).double()
    shared.queries, shared.encoder = shared.queries.double(), shared.encoder.double()
    tokens = shared.questions.tokens.double()
    shared.questions = QuestionTable(tokens=tokens, mask=shared.questions.mask)
    return shared


class _OneLayer(Fusion):
    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((2,),)
        self.gate = torch.nn.Parameter(torch.zeros(()))
