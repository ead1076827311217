"""All seeds in one pass: the same as one after the other, for every kind of method."""

import numpy as np
import pytest
from toy_cells import BUDGET, materials
from toy_encoder import SHAPE

from fusionbench.catalog import read_catalog
from fusionbench.harness.batched import Run, train_together
from fusionbench.harness.evaluate import evaluate
from fusionbench.harness.model import build_model, seeded_fusion
from fusionbench.harness.stepping import taps_of
from fusionbench.harness.train import train
from fusionbench.plugins import load_method

KINDS = (
    "penultimate", "scalar_mix", "scalar_mix-norm", "dense_connector-dci", "dense_connector-sti",
    "dense_connector-efficient", "vip_llava", "mllama", "lsf_external_direct-3_18_23", "mmfuser",
    "alf", "igva", "mol-hybrid", "tgif", "tgif-leaky", "come_vl", "lln_layerscale-per_layer",
    "wide_projector", "mema", "mema-readout", "mema-no_feedback", "mema-repaired", "dia_lstm",
    "dla", "mrla-light", "mrla-base",
)  # fmt: skip
RUNS = [Run(seed=seed, lr=lr) for lr in (3e-3, 1e-2) for seed in (0, 1, 2)]


def both_ways(name, budget, runs):
    card = read_catalog().methods[name]
    method, settings = load_method(card), dict(card.settings)
    shared = materials(EVERY_TAP, budget)
    taps = {
        tap
        for run in runs
        for tap in taps_of(build_model(method, settings, shared, run.seed).fusion)
    }
    shared = materials(sorted(taps), budget)
    alone = [build_model(method, settings, shared, run.seed) for run in runs]
    together = [build_model(method, settings, shared, run.seed) for run in runs]
    expected = [train(m, shared, run.seed, run.lr) for m, run in zip(alone, runs, strict=True)]
    found = train_together(together, shared, runs)
    return (alone, expected), (together, found), shared


@pytest.mark.parametrize("name", KINDS)
def test_a_pass_of_seeds_and_learning_rates_equals_the_loop(name):
    (alone, expected), (together, found), shared = both_ways(name, BUDGET, RUNS)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-5
        assert one.unmoved == other.unmoved
    same = [
        evaluate(one, shared, "test", 64)[0] == evaluate(other, shared, "test", 64)[0]
        for one, other in zip(alone, together, strict=True)
    ]
    assert np.concatenate(same).mean() >= 0.999
