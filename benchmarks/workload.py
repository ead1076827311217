"""A task of random features at a real shape: time does not depend on what they mean."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.tasks import Task, TaskData
from fusionbench.harness.bundle import Bundle, Examples
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import seeded_fusion
from fusionbench.harness.pipeline import subject
from fusionbench.harness.stepping import taps_of
from fusionbench.models.encoders.features import FeatureKey
from fusionbench.records.cell import Budget, Setting
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.study.study import PAPER, QUICK


class Nothing(Task):
    """Nobody loads it."""

    chance = 0.25

    def load(self) -> TaskData:
        """Refuse: there is no data behind these examples."""
        raise NotImplementedError("a benchmark's task has no images")


def find(name: str) -> tuple[type[Method], Mapping[str, Setting]]:
    """A built-in method and its settings."""
    card = read_catalog().methods[name]
    return load_method(card), card.settings


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call; processor time on a CPU, where others may be at work."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def small_encoder(device: torch.device) -> Encoder:
    """DINOv2 ViT-S/14 at 112 px with random weights on a GPU, `nano` on a CPU."""
    name, size = ("shape:dinov2-s-14", 112) if device.type == "cuda" else ("nano", 0)
    return subject(name, image_size=size, device=device, dtype=torch.float32)[0]


def small_budget(device: torch.device, steps: int, lr: float) -> Budget:
    """Of the preset `paper` on a GPU and of `quick` on a CPU, with one learning rate.

    The attentive reader everywhere: these benchmarks time training steps.
    """
    base = PAPER.budget if device.type == "cuda" else QUICK.budget
    return replace(base, steps=steps, lrs=(lr,), reader="attentive", resample="bootstrap")


def materials(
    encoder: Encoder,
    method: type[Method],
    settings: Mapping[str, Setting],
    budget: Budget,
    *,
    device: torch.device,
    pool: int = 512,
) -> Materials:
    """Random hidden states of `pool` images, on the device if it is a GPU."""
    split = _examples(pool)
    made = Materials(
        name="benchmark",
        task=Nothing(),
        bundle=Bundle(
            answers=("a", "b", "c", "d"),
            questions=tuple(f"what is number {word} ?" for word in "abcdefgh"),
            train=split,
            val=split,
            test=split,
            images="",
            count=pool,
        ),
        budget=budget,
        shape=replace(encoder.shape, query_dim=budget.query_dim),
        key=FeatureKey(weights="", size=0, images="", count=pool, precision="", dtype=""),
        device=device,
        encoder=encoder,
    )
    fusion = seeded_fusion(method, settings, made.shape, stream=("benchmark", 0))
    rng = torch.Generator(device).manual_seed(0)
    shape = (pool, encoder.shape.tokens, encoder.shape.dim)
    for tap in taps_of(fusion):
        made._taps[tap] = torch.randn(shape, generator=rng, device=device)
    return made


def _examples(pool: int) -> Examples:
    rng = np.random.default_rng(0)
    return Examples(
        items=tuple(map(str, range(pool))),
        groups=tuple(map(str, range(pool))),
        rows=np.arange(pool),
        questions=rng.integers(0, 8, pool),
        answers=rng.integers(0, 4, pool),
    )
