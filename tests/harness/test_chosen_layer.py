"""`best_single`: the layer is chosen on val, by runs that are never evaluated, and all are kept."""

import numpy as np
import pytest
import torch
from in_process import fusionbench
from toy_cells import EVERY_TAP, materials

from fusionbench.api.errors import UserError
from fusionbench.harness.cell import Tuned, choose_layer
from fusionbench.harness.model import build_model
from fusionbench.records.cell import TUNING_SEED
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

CATALOG = read_catalog()


def tuned(lr, *scores):
    return Tuned(lr=lr, scores={f"{lr:g}": list(scores)})


def test_the_best_mean_on_val_wins_and_ties_go_to_the_first_layer():
    found = {3: tuned(1e-3, 0.75, 0.75), 1: tuned(3e-3, 1.0, 0.5), 2: tuned(1e-3, 0.9, 0.1)}
    chosen = choose_layer("index", found)
    assert chosen.settings == {"index": 1} and chosen.lr == 3e-3
    assert chosen.scores["index=3, 0.001"] == [0.75, 0.75] and len(chosen.scores) == 3
    assert chosen.notes == ("index=1: the best on val of 3 layers tried in 6 runs",)


def test_nobody_sets_the_layer_that_is_tried():
    assert CATALOG.methods["best_single"].settings == {}
    with pytest.raises(UserError, match="index"):
        select_methods(CATALOG, ["best_single[index=3]"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tried")
    study = folder / "tried.yaml"
    study.write_text(
        "preset: smoke\nmethods: [best_single]\ntasks: [planted_layer]\nseeds: 2\n"
        "budget: {steps: 25, batch: 32, train_items: 256, val_items: 64, tuning_seeds: 2}\n"
    )
    fusionbench("run", study, "--out", folder / "out", "--quiet")
    return Store.open(folder / "out")


def test_it_finds_the_layer_that_knows_and_keeps_what_all_others_scored(store):
    evaluated = list(store.records())
    assert len(evaluated) == 2
    for record in evaluated:
        means = {name: np.mean(values) for name, values in record.tuning.items()}
        assert len(means) == 8 and all(len(v) == 2 for v in record.tuning.values())
        (chosen,) = {layer for tap in record.taps for layer in tap}
        assert means[f"index={chosen}, 0.003"] == max(means.values())
        assert record.notes == (f"index={chosen}: the best on val of 8 layers tried in 16 runs",)


def test_the_runs_that_choose_are_never_evaluated_and_shared_by_all_seeds(store):
    tries = [store.find(path.stem) for path in (store.folder / "tuning").glob("*.json")]
    # 8 layers, 2 tuning seeds: once, not once a seed.
    assert len(tries) == 16
    assert all(record.spec.seed >= TUNING_SEED for record in tries)
    assert {record.spec.settings["index"] for record in tries} == set(range(1, 9))


def test_the_last_layer_with_its_norm_is_what_the_encoder_gives():
    shared = materials([*EVERY_TAP, (6,)])
    fusion = load_method(CATALOG.methods["last_norm"])(shared.shape)
    rows = torch.arange(5)
    hidden = shared.states(rows)(fusion.taps)
    last = shared.states(rows)(((shared.shape.layers,),))[0]
    tokens = fusion(hidden, torch.zeros(5, 6)).tokens
    torch.testing.assert_close(tokens, fusion.patches(shared.encoder.norm(last)))


@pytest.mark.parametrize("name", ["tgif", "igva", "mol-patch", "mema"])
def test_a_shuffled_query_says_nothing_about_what_is_asked(name):
    shared = materials(EVERY_TAP)
    chosen = select_methods(CATALOG, [name, f"{name}[question=shuffled]"])
    built = [build_model(load_method(c.card), c.settings, shared, 0) for c in chosen]
    plain, control = built
    # The same module, started alike: all that differs is what it is told.
    for ours, theirs in zip(plain.parameters(), control.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    batch = shared.splits["test"]
    asked, told = plain.query(batch, shared), control.query(batch, shared)
    # Two questions about one image: the fusion sees them apart, its control cannot.
    same_image = batch.rows[:, None] == batch.rows[None]
    assert torch.cdist(asked, asked)[same_image].any()
    assert not torch.cdist(told, told)[same_image].any()
    # It is a question all the same, and not always the same one; in training as at test.
    assert len(told.unique(dim=0)) == len(asked.unique(dim=0)) == 2
    assert torch.equal(control.train().query(batch, shared), told)


def test_one_shuffled_query_has_a_name():
    (named, inline) = select_methods(CATALOG, ["tgif-shuffled_query", "tgif[question=shuffled]"])
    assert named.settings == inline.settings and named.settings["question"] == "shuffled"
    with pytest.raises((UserError, ValueError), match="shuffled"):
        select_methods(CATALOG, ["tgif[question=shufled]"])
