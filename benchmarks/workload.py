"""A task of random features at a real shape: time does not depend on what they mean."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fusionbench.catalog import read_catalog
from fusionbench.data import Bundle, Examples
from fusionbench.encoders.contract import Encoder
from fusionbench.features import FeatureKey
from fusionbench.fusion import Method
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import seeded_fusion
from fusionbench.harness.stepping import taps_of
from fusionbench.plugins import load_method
from fusionbench.records import Budget, Setting
from fusionbench.task import Task, TaskData


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
