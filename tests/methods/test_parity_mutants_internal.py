"""The comparison with official numbers rejects almost right fusions inside a language model."""

from dataclasses import replace

import pytest
from parity_cases import SHIPPED, cases, mismatches
from parity_replays import REPLAYS, find
from torch import nn
from torch.nn import functional as F

from fusionbench.api.types import StackShape
from fusionbench.methods import _cross_layer, deepstack, lsf_internal
from fusionbench.methods._cross_layer import CrossLayer, Gate, ImageAttention
from fusionbench.methods.lsf_internal import LSFInternal
from fusionbench.methods.mema import Mema
from fusionbench.methods.qwen3vl_deepstack import Merger, Qwen3VLDeepStack
from fusionbench.methods.tgif import TGIF
from fusionbench.models.readers import injection as layers
from fusionbench.models.readers.injection import Inside

KINDS = {
    "direct": ("layer_select_fuse", "I_D"),
    "modular": ("layer_select_fuse", "I_M"),
    "cross layer": ("layer_select_fuse", "LlamaDecoderLayer"),
    "deepstack": ("deepstack", "CustomLlamaModel"),
    "sampling": ("deepstack", "process_plain_deepstack"),
    "qwen": ("qwen3vl_deepstack", ""),
    "tgif": ("tgif", "LlavaLlamaForCausalLM"),
    "mema": ("mema", "LlavaLlamaForCausalLM"),
    "video": ("dense_connector", "LlavaMetaForCausalLM"),
}


def replayed(kind: str) -> list[str]:
    """Mismatches of all recorded cases of this kind that start with random weights."""
    method, symbol = KINDS[kind]
    found, seen = [], 0
    for case in cases(SHIPPED):
        random = case.config.get("weights", "random") == "random"
        if case.facts["method"] == method and case.symbol.startswith(symbol) and random:
            seen += 1
            found += mismatches(case, find(REPLAYS, case)(case))
    if not seen:
        pytest.skip(f"no such case here: {kind}")
    return found


def only_gradients(found: list[str]) -> bool:
    return bool(found) and all(text.startswith("grad") for text in found)


@pytest.mark.parametrize("kind", ["direct", "modular"])
def test_a_hidden_state_one_layer_off_is_rejected(monkeypatch, kind):
    right = StackShape.paper_layer
    monkeypatch.setattr(
        StackShape, "paper_layer", lambda self, i, **more: max(right(self, i, **more) - 1, 0)
    )
    assert replayed(kind)


def test_a_reader_layer_one_off_is_rejected(monkeypatch):
    right = lsf_internal.targets

    def off(strategy, count):
        return tuple((j, k, (m + 1) % count) for j, k, m in right(strategy, count))

    monkeypatch.setattr(lsf_internal, "targets", off)
    assert replayed("direct")
    # Its weights bear the number of their layer.
    with pytest.raises(ValueError, match="no weight"):
        replayed("modular")


def test_the_second_of_two_states_for_one_layer_must_not_arrive(monkeypatch):
    monkeypatch.setattr(lsf_internal, "first_of_each_layer", lambda found: found)
    collide = [
        case
        for case in cases(SHIPPED)
        if case.symbol.startswith("I_D")
        and len(case.facts["facts"]["decoder_layers_used"]) < case.config["strategy"].count("-") + 1
    ]
    if not collide:
        pytest.skip("no two states meet in these cases")
    assert all(mismatches(case, find(REPLAYS, case)(case)) for case in collide)


@pytest.mark.parametrize("kind", ["direct", "deepstack", "qwen"])
def test_values_on_the_wrong_side_of_the_layer_are_rejected(monkeypatch, kind):
    other = {"before": "after", "after": "before"}
    right = Inside._plus
    monkeypatch.setattr(
        Inside, "_plus", lambda self, hidden, index, when: right(self, hidden, index, other[when])
    )
    assert replayed(kind)


@pytest.mark.parametrize("kind", ["direct", "deepstack", "qwen"])
def test_values_one_position_off_are_rejected(monkeypatch, kind):
    right = layers.at_positions

    def off(values, spots, like):
        return right(values, [(row, first + 1) for row, first in spots], like)

    monkeypatch.setattr("parity_internal.at_positions", off)
    assert replayed(kind)


@pytest.mark.parametrize("kind", ["direct", "deepstack", "qwen"])
def test_detached_values_are_rejected_by_their_gradients_alone(monkeypatch, kind):
    right = Inside._values
    monkeypatch.setattr(Inside, "_values", lambda self, one: right(self, one).detach())
    assert only_gradients(replayed(kind))


def test_a_detached_image_in_the_cross_layer_is_rejected_by_its_gradient_alone(monkeypatch):
    right = ImageAttention.forward
    monkeypatch.setattr(
        ImageAttention,
        "forward",
        lambda self, x, image, mask: right(self, x, image.detach(), mask),
    )
    assert only_gradients(replayed("cross layer"))
    assert only_gradients(replayed("modular"))


def test_the_repaired_cross_layer_is_not_the_published_one(monkeypatch):
    right = CrossLayer.__init__
    monkeypatch.setattr(
        CrossLayer,
        "__init__",
        lambda self, width, *, as_published, **more: right(self, width, as_published=False, **more),
    )
    assert replayed("cross layer")
    assert replayed("modular")


@pytest.mark.parametrize("kind", ["cross layer", "modular"])
def test_a_cross_layer_that_sees_the_whole_image_is_rejected(monkeypatch, kind):
    monkeypatch.setattr(CrossLayer, "_mask", lambda self, mask, image: None)
    assert replayed(kind)


@pytest.mark.parametrize("kind", ["cross layer", "modular"])
def test_a_gate_without_its_tanh_is_rejected(monkeypatch, kind):
    monkeypatch.setattr(Gate, "forward", lambda self, x: self.weight * x)
    assert replayed(kind)


@pytest.mark.parametrize("norm", ["input_layernorm", "post_attention_layernorm"])
def test_a_cross_layer_without_one_of_its_norms_is_rejected(monkeypatch, norm):
    right = CrossLayer.forward

    def forward(self, layer, image, hidden, **named):
        kept = layer._modules[norm]
        layer._modules[norm] = nn.Identity()
        found = right(self, layer, image, hidden, **named)
        layer._modules[norm] = kept
        return found

    monkeypatch.setattr(CrossLayer, "forward", forward)
    assert replayed("cross layer")


def test_a_mlp_that_gates_the_wrong_half_is_rejected(monkeypatch):
    class Swapped(_cross_layer.GatedMLP):
        def forward(self, x):
            return self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))

    monkeypatch.setattr(_cross_layer, "GatedMLP", Swapped)
    assert replayed("cross layer")


def test_crops_sampled_with_rows_and_columns_mixed_up_are_rejected(monkeypatch):
    right = deepstack.stacked
    monkeypatch.setattr(
        "parity_internal.stacked",
        lambda crops, rows, columns, sampling: right(
            crops, rows=columns, columns=rows, sampling=sampling
        ),
    )
    assert replayed("sampling")


def test_neighbouring_patches_in_place_of_dilated_ones_are_rejected(monkeypatch):
    monkeypatch.setattr(
        deepstack,
        "dilated",
        lambda image, rows, columns: image.reshape(rows * columns, -1, image.shape[-1]),
    )
    assert replayed("sampling")


def test_a_merger_without_its_norm_is_rejected(monkeypatch):
    def forward(self, merged):
        return self.linear_fc2(F.gelu(self.linear_fc1(merged)))

    monkeypatch.setattr(Merger, "forward", forward)
    assert replayed("qwen")


def test_a_merger_that_normalises_before_it_merges_is_rejected(monkeypatch):
    right = Merger.forward

    def forward(self, merged):
        parts = merged.unflatten(-1, (4, -1))
        return right(self, F.layer_norm(parts, parts.shape[-1:]).flatten(-2))

    monkeypatch.setattr(Merger, "forward", forward)
    assert replayed("qwen")


def test_a_merger_with_the_approximate_gelu_is_rejected(monkeypatch):
    def forward(self, merged):
        return self.linear_fc2(F.gelu(self.linear_fc1(self.norm(merged)), approximate="tanh"))

    monkeypatch.setattr(Merger, "forward", forward)
    assert replayed("qwen")


def test_qwens_layers_one_block_off_are_rejected(monkeypatch):
    right = Qwen3VLDeepStack.__init__
    monkeypatch.setattr(
        Qwen3VLDeepStack,
        "__init__",
        lambda self, shape, *, layers, **more: right(
            self, shape, layers=tuple(k - 1 for k in layers), **more
        ),
    )
    assert replayed("qwen")


def test_a_second_state_that_takes_the_firsts_projector_is_rejected(monkeypatch):
    right = LSFInternal.projected

    def projected(self, hidden):
        first = next(iter(self.mm_projectors))
        for key in self.mm_projectors:
            self.mm_projectors[key] = self.mm_projectors[first]
        return right(self, hidden)

    monkeypatch.setattr(LSFInternal, "projected", projected)
    assert replayed("direct")


def test_tgif_in_a_language_model_without_its_norm_is_rejected(monkeypatch):
    right = TGIF.forward

    def forward(self, hidden, query):
        self.layer_selector.norm.forward = lambda x: x
        return right(self, hidden, query)

    monkeypatch.setattr(TGIF, "forward", forward)
    assert replayed("tgif")


def test_tgif_whose_balance_is_detached_is_rejected_by_its_gradient_alone(monkeypatch):
    right = TGIF.forward

    def forward(self, hidden, query):
        fused = right(self, hidden, query)
        return replace(fused, losses={name: term.detach() for name, term in fused.losses.items()})

    monkeypatch.setattr(TGIF, "forward", forward)
    assert only_gradients(replayed("tgif"))


def test_tgif_that_does_not_read_the_answer_is_not_the_published_one(monkeypatch):
    import parity_mema

    right = parity_mema._mean_of
    seen = [
        case for case in cases(SHIPPED) if find(REPLAYS, case).__name__.startswith("replay_tgif_in")
    ]
    for case in seen:
        unlabelled = case.inputs["labels"] == -100
        monkeypatch.setattr(
            parity_mema,
            "_mean_of",
            lambda table, ids, kept, hidden=unlabelled: right(table, ids, kept & hidden),
        )
        assert mismatches(case, find(REPLAYS, case)(case))


def test_mema_in_a_language_model_with_a_detached_memory_is_rejected(monkeypatch):
    right = Mema.finish

    def finish(self, tokens, state):
        fused = right(self, tokens, state)
        return replace(fused, summary=fused.summary.detach())

    monkeypatch.setattr(Mema, "finish", finish)
    assert only_gradients(replayed("mema"))


def test_mema_in_a_language_model_that_reads_the_last_block_is_rejected(monkeypatch):
    right = Mema.finish
    monkeypatch.setattr(
        Mema, "finish", lambda self, x, state: right(self, x, state._replace(kept=(x,)))
    )
    assert replayed("mema")


def test_frames_that_are_averaged_in_place_of_maximised_are_rejected(monkeypatch):
    def joined(frames, *, pooled):
        if pooled:
            frames = frames.unflatten(1, (-1, 2)).mean(dim=2)
        return frames.flatten(0, 1)

    monkeypatch.setattr("parity_layers.joined_frames", joined)
    assert replayed("video")


def test_frames_with_a_detached_pool_are_rejected_by_their_gradients_alone(monkeypatch):
    import parity_layers

    right = parity_layers.joined_frames

    def half(frames, *, pooled):
        # Half of the path is cut, so that the loss can still be differentiated.
        found = right(frames, pooled=pooled)
        return (found + found.detach()) / 2

    monkeypatch.setattr(parity_layers, "joined_frames", half)
    assert only_gradients(replayed("video"))
