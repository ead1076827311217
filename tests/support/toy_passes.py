"""Passes over the toy task: the same models trained one by one and together."""

import numpy as np
import torch
from toy_cells import BUDGET, materials
from toy_encoder import SHAPE

from fusionbench.api.fusion import Fusion
from fusionbench.harness.materials import QuestionTable
from fusionbench.harness.model import build_model, seeded_fusion, shape_of
from fusionbench.harness.passes import PassMember, train_together
from fusionbench.harness.stepping import taps_of
from fusionbench.harness.train import evaluate, train
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

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
