"""Every method with an official implementation gives the numbers recorded from it."""

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
from torch.nn import functional as F

from fusionbench.api.types import StackShape
from fusionbench.methods import _mema, mmfuser
from fusionbench.methods._cross_layer import CrossLayer
from fusionbench.methods._units import LayerAttention, RecurrentUnit
from fusionbench.methods.mema import Mema, SpatialGate
from fusionbench.methods.mmfuser import MSDeformAttn
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
