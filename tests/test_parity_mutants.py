"""The comparison with the official numbers rejects implementations that are almost right."""

from types import SimpleNamespace

import pytest
import torch
from parity_cases import cases, mismatches
from parity_replays import REPLAYS, find
from torch.nn import functional as F

from fusionbench.methods import dense_connector, mema
from fusionbench.methods.mema import DynamicSharingUnit, Mema, SpatialGate
from fusionbench.types import StackShape


def replayed(method: str, symbol: str, **config):
    """Mismatches of the first recorded case of this kind."""
    for case in cases():
        right = all(case.config.get(key) == value for key, value in config.items())
        if case.facts["method"] == method and case.symbol.startswith(symbol) and right:
            return mismatches(case, find(REPLAYS, case)(case))
    pytest.skip(f"no such case here: {method} {symbol} {config}")


def without_layer_norm():
    """What a module sees as `F` if someone forgets its parameter-free norms."""
    named = {name: getattr(F, name) for name in dir(F)}
    return SimpleNamespace(**named | {"layer_norm": lambda x, shape: x})


@pytest.mark.parametrize("form", ["sti", "sci", "dci"])
def test_dense_connector_one_layer_off_is_rejected(monkeypatch, form):
    right = StackShape.paper_layer
    monkeypatch.setattr(
        StackShape, "paper_layer", lambda self, i, **more: max(right(self, i, **more) - 1, 0)
    )
    assert replayed("dense_connector", f"dense_connector_{form}")


def test_dense_connector_groups_that_start_at_one_are_rejected(monkeypatch):
    shifted = {name: ((1, 13), (13, 25)) for name in ("clip", "siglip")}
    monkeypatch.setattr(dense_connector, "_GROUPS", shifted)
    assert replayed("dense_connector", "dense_connector_dci", encoder="clip")


def test_dense_connector_with_the_final_feature_last_is_rejected(monkeypatch):
    right = dense_connector._taps
    monkeypatch.setattr(dense_connector, "_taps", lambda *given: right(*given)[::-1])
    assert replayed("dense_connector", "dense_connector_sci")


@pytest.mark.parametrize("symbol", ["DynamicSharingUnit", "SpatialGate", "CLIPVisionTower"])
def test_mema_without_its_parameter_free_norm_is_rejected(monkeypatch, symbol):
    monkeypatch.setattr(mema, "F", without_layer_norm())
    assert replayed("mema", symbol, weights="random")


def test_mema_with_a_detached_memory_in_the_gate_is_rejected(monkeypatch):
    right = SpatialGate.forward
    monkeypatch.setattr(
        SpatialGate, "forward", lambda self, x, memory: right(self, x, memory.detach())
    )
    found = replayed("mema", "CLIPVisionTower", weights="random")
    assert found
    assert all(text.startswith("grad") for text in found)


def test_mema_whose_memory_forgets_its_gradient_over_blocks_is_rejected(monkeypatch):
    right = DynamicSharingUnit.forward
    monkeypatch.setattr(
        DynamicSharingUnit, "forward", lambda self, y, t, c: right(self, y, t, c.detach())
    )
    found = replayed("mema", "CLIPVisionTower", weights="random")
    assert found
    assert all(text.startswith("grad") for text in found)


def test_mema_that_reads_the_block_after_the_penultimate_is_rejected(monkeypatch):
    right = Mema.finish
    monkeypatch.setattr(
        Mema, "finish", lambda self, x, state: right(self, x, state._replace(kept=(x,)))
    )
    assert replayed("mema", "CLIPVisionTower", weights="random")


def test_mema_whose_summary_leaves_cls_out_is_rejected(monkeypatch):
    def summarise(self, tokens):
        patches = tokens[:, 1:]
        looks = [patches.mean(dim=1), patches.amax(dim=1), tokens[:, 0]]
        return self.y_proj(torch.cat(looks, dim=-1))

    monkeypatch.setattr(Mema, "summarise", summarise)
    assert replayed("mema", "CLIPVisionTower", weights="random")


def test_a_value_that_should_be_exactly_zero_may_not_be_nearly_zero():
    case = next(case for case in cases() if case.facts["params_with_exactly_zero_gradient"])
    right = find(REPLAYS, case)(case)
    zeros = [name for name, value in case.tensors.items() if name in right and not value.any()]
    wrong = right | {zeros[0]: right[zeros[0]] + 1e-30}
    assert mismatches(case, wrong) != []


def test_a_result_that_is_missing_is_a_mismatch():
    case = next(case for case in cases() if find(REPLAYS, case))
    right = find(REPLAYS, case)(case)
    first = next(iter(right))
    left = {name: value for name, value in right.items() if name != first}
    assert mismatches(case, left) == [f"{first} was not replayed"]
