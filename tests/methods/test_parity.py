"""Numbers recorded from official implementations: ours equal them, almost right ones do not."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import parity_internal as internal
import parity_layers as layers
import parity_mema as mema
import pytest
import torch
from parity_cases import FOLDER, SHIPPED, Replay, cases, mismatches
from parity_replays import REPLAYS, find
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fusionbench.api.types import StackShape
from fusionbench.methods import _mema, dense_connector, mmfuser
from fusionbench.methods._cross_layer import CrossLayer
from fusionbench.methods._units import LayerAttention, RecurrentUnit
from fusionbench.methods.concat import Concat
from fusionbench.methods.igva import QueryTransformer
from fusionbench.methods.mema import DynamicSharingUnit, Mema, SpatialGate
from fusionbench.methods.mmfuser import MMFuser, MSDeformAttn
from fusionbench.methods.tgif import TGIF
from fusionbench.models.readers.injection import Inside


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_recorded_case_of_an_official_implementation_comes_out_equal(case):
    replay = find(REPLAYS, case)
    assert replay is not None, f"no replay knows {case.symbol} of {case.facts['method']}"
    assert mismatches(case, replay(case)) == []


def test_a_folder_with_a_file_for_each_case_is_read_alike(tmp_path):
    for case in (one := cases(SHIPPED)[0], other := cases(SHIPPED)[1]):
        assert case.facts["file"] == one.facts["file"]
        save_file(case.tensors, tmp_path / f"{case.id}.safetensors")
    listed = [dict(case.facts) | {"file": f"{case.id}.safetensors"} for case in (one, other)]
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": listed}))
    for read, case in zip(cases(tmp_path), (one, other), strict=True):
        assert read.tensors.keys() == case.tensors.keys()
        assert all(read.tensors[name].equal(value) for name, value in case.tensors.items())


# Cases of the recorded kinds at other widths, grids, depths, batches and groups.
#
# The numbers come from an independent re-statement of the equations (`parity/README.md`).

RESTATED = SHIPPED / "restated"
# Another folder, named by FUSIONBENCH_PARITY_DIR, is replayed alone.
CASES = cases(RESTATED) if FOLDER == SHIPPED else []


@pytest.mark.few(15)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_restated_case_comes_out_equal(case):
    replay = find(REPLAYS, case)
    assert replay is not None
    assert mismatches(case, replay(case)) == []


def test_every_recorded_kind_is_tried_at_another_size():
    kinds = {(case.facts["method"], case.symbol.split()[0]) for case in cases(SHIPPED)}
    restated = {(case.facts["method"], case.symbol.split()[0]) for case in cases(RESTATED)}
    assert restated == kinds


def test_a_restated_case_differs_in_size_from_the_official_one():
    official = {case.id: case for case in cases(SHIPPED)}
    for case in cases(RESTATED):
        assert case.config != official[case.facts["like"]].config


def test_a_case_whose_settings_name_another_layer_is_rejected():
    [case] = [case for case in cases(RESTATED) if case.id == "mmfuser_random_c"]
    config = json.loads(json.dumps(case.config))
    config["select_layer"][0] -= 1
    wrong = replace(case, facts={**case.facts, "config": config})
    assert mismatches(wrong, find(REPLAYS, wrong)(wrong))


# Each recorded case alone rejects a method that is almost right.

Patch = pytest.MonkeyPatch


def around(patch: Patch, owner: type, name: str, change: Callable) -> None:
    """`change(right, self, *given)` in place of a method, `right` being the true one."""
    right = getattr(owner, name)
    patch.setattr(owner, name, lambda *given, **named: change(right, *given, **named))


def one_layer_off(patch: Patch) -> None:
    around(
        patch,
        StackShape,
        "paper_layer",
        lambda right, self, index, **more: max(right(self, index, **more) - 1, 0),
    )


def no_norm_of_the_memory(patch: Patch) -> None:
    named = {name: getattr(F, name) for name in dir(F)}
    patch.setattr(_mema, "F", SimpleNamespace(**named | {"layer_norm": lambda x, shape: x}))


def feedback_twice(patch: Patch) -> None:
    def change(right, self, tokens, memory):
        fused, looks = right(self, tokens, memory)
        return fused + (fused - tokens), looks

    around(patch, SpatialGate, "forward", change)


def the_last_block(patch: Patch) -> None:
    def change(right, self, tokens, state):
        return right(self, tokens, state._replace(kept=(tokens,)))

    around(patch, Mema, "finish", change)


def averaged_frames(patch: Patch) -> None:
    def joined(frames, *, pooled):
        frames = frames.unflatten(1, (-1, 2)).mean(dim=2) if pooled else frames
        return frames.flatten(0, 1)

    patch.setattr(layers, "joined_frames", joined)


def aligned_corners(patch: Patch) -> None:
    def sampled(x, grid, align_corners):
        return F.grid_sample(x, grid, align_corners=True)

    patch.setattr(mmfuser, "F", SimpleNamespace(grid_sample=sampled))


def rings_one_pixel_off(patch: Patch) -> None:
    around(patch, MSDeformAttn, "_rings", lambda right, self: right(self) + 1)


def repaired_cross_layer(patch: Patch) -> None:
    def change(right, self, width, *, as_published, **more):
        right(self, width, as_published=False, **more)

    around(patch, CrossLayer, "__init__", change)


def other_side_of_the_layer(patch: Patch) -> None:
    other = {"before": "after", "after": "before"}

    def change(right, self, hidden, index, when):
        return right(self, hidden, index, other[when])

    around(patch, Inside, "_plus", change)


def rows_for_columns(patch: Patch) -> None:
    right = internal.stacked
    patch.setattr(
        internal,
        "stacked",
        lambda crops, rows, columns, sampling: right(
            crops, rows=columns, columns=rows, sampling=sampling
        ),
    )


def last_layer_as_base(patch: Patch) -> None:
    def change(right, self, hidden, query):
        self.base = len(hidden) - 1
        return right(self, hidden, query)

    around(patch, TGIF, "forward", change)


def detached_balance(patch: Patch) -> None:
    def change(right, self, hidden, query):
        fused = right(self, hidden, query)
        return replace(fused, losses={name: term.detach() for name, term in fused.losses.items()})

    around(patch, TGIF, "forward", change)


def tanh_of_an_lstm(patch: Patch) -> None:
    def change(right, self, seen, hidden, cell):
        shown, cell = right(self, seen, hidden, cell)
        return shown / torch.sigmoid(cell) * torch.tanh(cell), cell

    around(patch, RecurrentUnit, "forward", change)


def no_scale(patch: Patch) -> None:
    around(
        patch,
        LayerAttention,
        "agreement",
        lambda right, self, query, key: right(self, query, key) * self.head**0.5,
    )


MUTANTS: dict[Replay, Callable[[Patch], None]] = {
    mema.replay_unit: no_norm_of_the_memory,
    mema.replay_gate: feedback_twice,
    mema.replay_loop: the_last_block,
    mema.replay_mema: the_last_block,
    mema.replay_tgif_in_language_model: detached_balance,
    layers.replay_connector: one_layer_off,
    layers.replay_video: averaged_frames,
    layers.replay_external_direct: one_layer_off,
    layers.replay_external_modular: one_layer_off,
    layers.replay_mmfuser: one_layer_off,
    layers.replay_deformable: aligned_corners,
    layers.replay_deformable_start: rings_one_pixel_off,
    internal.replay_internal: one_layer_off,
    internal.replay_cross_layer: repaired_cross_layer,
    internal.replay_stack: other_side_of_the_layer,
    internal.replay_qwen: other_side_of_the_layer,
    internal.replay_sampling: rows_for_columns,
    layers.replay_igva: one_layer_off,
    layers.replay_tgif: last_layer_as_base,
    layers.replay_unit: tanh_of_an_lstm,
    layers.replay_light: no_scale,
}


def test_every_replay_has_a_mutant():
    assert MUTANTS.keys() == set(REPLAYS.values())


@pytest.mark.few(13)
@pytest.mark.parametrize("case", cases(SHIPPED), ids=lambda case: case.id)
def test_the_case_accepts_the_method_and_rejects_its_mutant(monkeypatch, case):
    replay = find(REPLAYS, case)
    assert mismatches(case, replay(case)) == []
    MUTANTS[replay](monkeypatch)
    assert mismatches(case, replay(case))


# The comparison with the official numbers rejects implementations that are almost right.


def replayed(method: str, symbol: str, **config):
    """Mismatches of the first recorded case of this kind."""
    for case in cases(SHIPPED):
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
    mutants_one_layer_off(monkeypatch)
    assert replayed("dense_connector", f"dense_connector_{form}")


def test_dense_connector_groups_that_start_at_one_are_rejected(monkeypatch):
    monkeypatch.setitem(dense_connector._DENSE, "clip", "23,1..12,13..24")
    assert replayed("dense_connector", "dense_connector_dci", encoder="clip")


def test_dense_connector_with_the_final_feature_last_is_rejected(monkeypatch):
    monkeypatch.setitem(dense_connector._SPARSE, "clip", "7,15,23")
    assert replayed("dense_connector", "dense_connector_sci", encoder="clip")


def mutants_one_layer_off(monkeypatch):
    right = StackShape.paper_layer
    monkeypatch.setattr(
        StackShape, "paper_layer", lambda self, i, **more: max(right(self, i, **more) - 1, 0)
    )


@pytest.mark.parametrize("symbol", ["E_D", "E_M"])
def test_layer_select_fuse_one_layer_off_is_rejected(monkeypatch, symbol):
    mutants_one_layer_off(monkeypatch)
    assert replayed("layer_select_fuse", symbol)


def test_layer_select_fuse_with_the_final_feature_first_is_rejected(monkeypatch):
    right = Concat.__init__
    monkeypatch.setattr(
        Concat,
        "__init__",
        lambda self, shape, layers, blocks: right(
            self, shape, layers=",".join(layers.split(",")[::-1])
        ),
    )
    assert replayed("layer_select_fuse", "E_D")


@pytest.mark.parametrize("norm", ["query_norm", "feat_norm", "norm1"])
def test_mmfuser_without_one_of_its_norms_is_rejected(monkeypatch, norm):
    right = MMFuser.forward

    def forward(self, hidden, query):
        setattr(self, norm, nn.Identity())
        return right(self, hidden, query)

    monkeypatch.setattr(MMFuser, "forward", forward)
    assert replayed("mmfuser", "build_vision_projector", weights="random")


def test_deformable_attention_that_mixes_up_width_and_height_is_rejected(monkeypatch):
    right = mmfuser._shares
    monkeypatch.setattr(mmfuser, "_shares", lambda offsets, size: right(offsets, size[::-1]))
    assert replayed("mmfuser", "MSDeformAttn", weights="random")


def test_deformable_attention_with_corners_aligned_is_rejected(monkeypatch):
    aligned = SimpleNamespace(
        grid_sample=lambda x, grid, align_corners: F.grid_sample(x, grid, align_corners=True)
    )
    monkeypatch.setattr(mmfuser, "F", aligned)
    assert replayed("mmfuser", "MSDeformAttn", weights="random")


def test_deformable_attention_whose_rings_are_circles_is_rejected(monkeypatch):
    def rings(self):
        angles = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None, None]
        steps = torch.arange(1, self.points + 1)[None, None, :, None]
        return (ways * steps).expand(-1, self.levels, -1, -1).flatten()

    monkeypatch.setattr(MSDeformAttn, "_rings", rings)
    assert replayed("mmfuser", "MSDeformAttn._reset_parameters")


def test_igva_whose_groups_start_a_layer_early_is_rejected(monkeypatch):
    mutants_one_layer_off(monkeypatch)
    assert replayed("igva", "Aggregator", weights="random")


@pytest.mark.parametrize("norm", ["norm1", "norm2"])
def test_igva_without_one_of_its_norms_is_rejected(monkeypatch, norm):
    right = QueryTransformer.forward

    def forward(self, asking, groups):
        kept = getattr(self, norm)
        self._modules[norm] = nn.Identity()
        found = right(self, asking, groups)
        self._modules[norm] = kept
        return found

    monkeypatch.setattr(QueryTransformer, "forward", forward)
    assert replayed("igva", "Aggregator", weights="random")


def test_tgif_with_the_last_layer_as_its_base_is_rejected(monkeypatch):
    right = TGIF.forward

    def forward(self, hidden, query):
        self.base += 1
        return right(self, hidden, query)

    monkeypatch.setattr(TGIF, "forward", forward)
    assert replayed("tgif", "LayerSelector", weights="random")


@pytest.mark.parametrize("method", ["dianet", "dla"])
def test_a_recurrent_unit_with_an_lstms_tanh_is_rejected(monkeypatch, method):
    right = RecurrentUnit.forward

    def forward(self, seen, hidden, cell):
        shown, cell = right(self, seen, hidden, cell)
        return shown / torch.sigmoid(cell) * torch.tanh(cell), cell

    monkeypatch.setattr(RecurrentUnit, "forward", forward)
    assert replayed(method, "LSTMCell" if method == "dianet" else "DSU_block")


def test_layer_attention_without_its_scale_is_rejected(monkeypatch):
    right = LayerAttention.agreement
    monkeypatch.setattr(
        LayerAttention, "agreement", lambda self, q, k: right(self, q, k) * self.head**0.5
    )
    assert replayed("dla", "light_layer_attention_module")


@pytest.mark.parametrize("symbol", ["DynamicSharingUnit", "SpatialGate", "CLIPVisionTower"])
def test_mema_without_its_parameter_free_norm_is_rejected(monkeypatch, symbol):
    monkeypatch.setattr(_mema, "F", without_layer_norm())
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
    named = "params_with_exactly_zero_gradient"
    case = next(case for case in cases(SHIPPED) if case.facts[named] and find(REPLAYS, case))
    right = find(REPLAYS, case)(case)
    zeros = [name for name, value in case.tensors.items() if name in right and not value.any()]
    wrong = right | {zeros[0]: right[zeros[0]] + 1e-30}
    assert mismatches(case, wrong) != []


def test_a_result_that_is_missing_is_a_mismatch():
    case = next(case for case in cases(SHIPPED) if find(REPLAYS, case))
    right = find(REPLAYS, case)(case)
    first = next(iter(right))
    left = {name: value for name, value in right.items() if name != first}
    assert mismatches(case, left) == [f"{first} was not replayed"]
