"""Parts of a LLaVA checkpoint behind our contracts: tower, projector, joined tiles."""

import json
import shutil

import pytest
import torch
from llava_checkpoints import PINPOINTS, SIZE, Tiny, checkpoint
from llava_identity import fused, fused_tokens, greedy, logits, method_of, opened, original
from registered_methods import names

from fusionbench.api.types import Unsupported
from fusionbench.models.readers.injection import project
from fusionbench.models.readers.llava.checkpoint import FRESH, open_checkpoint, projector_for
from fusionbench.models.readers.llava.description import unfit
from fusionbench.models.readers.llava.tiles import Tiling, best

TILING = Tiling(pinpoints=tuple(map(tuple, PINPOINTS)), side=SIZE, grid=4)
SIZES = [(30, 40), (28, 28), (20, 70), (70, 20), (1, 1), (1, 500), (57, 83), (56, 56), (29, 85)]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_hidden_states_are_the_towers(tower):
    found = opened(Tiny(tower=tower, select="full"))
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=draw)
    library = original(Tiny(tower=tower, select="full")).model.model.vision_tower
    theirs = library(pixels, output_hidden_states=True)
    mine = found.encoder.hidden_states(pixels)
    assert len(mine) == len(theirs.hidden_states) == 5
    for one, other in zip(mine, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if tower == "siglip":
        normed = found.encoder.norm(mine[-1])
        torch.testing.assert_close(normed, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_another_layer_selection_or_padding_gives_other_logits_where_it_should():
    whole, found = original(), opened()
    right = whole.logits()
    labels = ("last", "layer[index=2]", "last_norm")
    for label in labels:
        other = logits(found, method_of(label, found), whole.batch)
        assert (other - right)[:2].abs().max() > 0.05, label
        # The third row has no picture.
        torch.testing.assert_close(other[2], right[2], atol=1e-5, rtol=1e-5)
    right_padded = original(side="right")
    own = method_of("penultimate", found)
    mask = right_padded.batch["attention_mask"].bool()
    mine = logits(found, own, right_padded.batch)
    torch.testing.assert_close(mine[mask], right_padded.logits()[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[mask], right[whole.batch["attention_mask"].bool()],
                               atol=1e-4, rtol=1e-4)  # fmt: skip


def test_methods_that_write_into_the_tower_run_and_leave_it_as_it_is():
    found = opened()
    assert not any(weight.requires_grad for weight in found.encoder.parameters())
    assert not any(weight.requires_grad for weight in found.projector.parameters())
    method = method_of("mema[query=false]", found)
    inputs = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    tokens = fused_tokens(found, method, inputs)
    assert tokens.shape == (2, 16, 32) and tokens.isfinite().all()


def test_a_method_as_wide_as_the_projector_keeps_a_copy_of_the_trained_one():
    found = opened()
    projector, note = projector_for(found, 32)
    assert note == "" and projector is not found.projector
    tokens = torch.randn(2, 3, 32)
    assert torch.equal(projector(tokens), found.projector(tokens))
    projector.linear_1.weight.data.zero_()
    assert found.projector.linear_1.weight.any()


def test_a_wider_method_gets_a_fresh_projector_at_the_scale_of_the_token_embeddings():
    found = opened()
    torch.manual_seed(0)
    projector, note = projector_for(found, 96)
    assert note == FRESH and all(weight.requires_grad for weight in projector.parameters())
    assert {name: tuple(weight.shape) for name, weight in projector.state_dict().items()} == {
        "linear_1.weight": (48, 96), "linear_1.bias": (48,),
        "linear_2.weight": (48, 48), "linear_2.bias": (48,),
    }  # fmt: skip
    table = found.language.model.get_input_embeddings().weight.std()
    assert 0.9 * table < projector(torch.randn(500, 96)).std() < 1.1 * table
    tokens = torch.randn(500, 96) * 30 + 5
    projector, _ = projector_for(found, 96, tokens)
    torch.testing.assert_close(projector(tokens).std(), table, rtol=0.01, atol=0)
    torch.manual_seed(0)
    first, again = (projector_for(found, 96)[0].linear_1.weight for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(projector_for(found, 96)[0].linear_1.weight, first)
    assert not torch.equal(first, again)


def test_a_checkpoint_of_two_layers_keeps_its_projector_for_two_layers_only():
    found = opened(Tiny(layer=(-2, 2)))
    assert projector_for(found, 64)[1] == "" and projector_for(found, 32)[1] == FRESH


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_tokens_are_counted_as_the_library_counts_them(size):
    from transformers import AutoProcessor
    from transformers.image_processing_utils import select_best_resolution

    processor = AutoProcessor.from_pretrained(checkpoint(Tiny(kind="llava_next")))
    assert best(size, TILING.pinpoints) == tuple(select_best_resolution(size, PINPOINTS))
    count = processor._get_num_multimodal_tokens(image_sizes=[size])
    assert TILING.tokens(size) == count["num_image_tokens"][0]
    joined = TILING.join(torch.zeros(TILING.inputs(size), 16, 3), size, torch.ones(3))
    assert len(joined) == TILING.tokens(size)


@pytest.mark.parametrize("most", [0, 1, 2, 9])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_joined_as_the_library_joins_them(most, size):
    kind = "llava_onevision" if most else "llava_next"
    made = Tiny(kind=kind, tower="siglip", select="full", layer=-1)
    library = original(made).model.model
    tiling = Tiling(pinpoints=TILING.pinpoints, side=SIZE, grid=4, most=most)
    tokens = torch.randn(tiling.inputs(size), 16, 48)
    newline = torch.randn(48)
    given = {"vision_aspect_ratio": f"anyres_max_{most}"} if most else {
        "vision_feature_select_strategy": "full"}  # fmt: skip
    (theirs,), _ = library.pack_image_features(
        [tokens], torch.tensor([size]), image_newline=newline, **given
    )
    mine = tiling.join(tokens, size, newline)
    assert len(mine) == tiling.tokens(size)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_one_input_alone_gets_one_newline():
    tokens, newline = torch.randn(1, 16, 3), torch.ones(3)
    joined = TILING.join(tokens, (20, 70), newline)
    assert torch.equal(joined, torch.cat([tokens[0], newline[None]]))


def test_a_method_that_changes_the_number_of_tokens_is_unsupported_where_tiles_are_joined():
    plain, tiled = opened(), opened(Tiny(kind="llava_next"))
    size = (30, 40)
    inputs = torch.randn(tiled.tiling.inputs(size), 3, SIZE, SIZE)
    for label in ("token_packer", "concat_all-pooled", "token_concat"):
        fewer = fused_tokens(plain, method_of(label, plain), inputs)
        assert fewer.shape[1] != 16
        assert len(plain.image_tokens(fewer, [(1, size)] * len(inputs))) == len(inputs)
        with pytest.raises(Unsupported, match=f"16 to {fewer.shape[1]}"):
            tiled.image_tokens(fewer, [(len(inputs), size)])


@pytest.mark.parametrize("made", [Tiny(), Tiny(select="full"), Tiny(kind="llava_next")])
def test_every_method_runs_behind_the_tower_or_says_why_it_does_not_fit(made):
    found, size = opened(made), (30, 40)
    tiled = found.tiling is not None
    count = found.tiling.inputs(size) if tiled else 2
    parts = [(count, size)] if tiled else [(1, size)] * count
    inputs = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    ran, left_out = [], {}
    for name in names():
        try:
            method = method_of(name, found)
            reason = unfit(found.about, needs_grid=method.needs_grid)
            given = None if reason else fused(found, method, inputs)
            if given is not None:
                projector, _ = projector_for(found, method.out_dim)
                projected = project(given, projector)
                reason = unfit(found.about, tokens=projected.shape[1])
        except Unsupported as why:
            reason = str(why)
        if reason:
            left_out[name] = reason
            continue
        tokens = found.image_tokens(projected, parts)
        assert len(tokens) == len(parts) and all(one.shape[1] == 48 for one in tokens), name
        ran.append(name)
    assert {"penultimate", "mema", "lsf_internal_direct", "dense_connector-dci"} <= set(ran)
    packer = "token_packer"
    assert (packer in left_out) == (tiled or made.select == "full")
    assert ("dense_connector-efficient" in left_out) == (packer in left_out)


def test_injected_values_of_tiles_are_placed_like_the_tokens_with_zeros_at_the_newlines():
    tiled = opened(Tiny(kind="llava_next"))
    parts = [(tiled.tiling.inputs(size), size) for size in SIZES[:2]]
    values = torch.rand(sum(count for count, _ in parts), 16, 48) + 1
    placed = tiled.image_tokens(values, parts, newline=torch.zeros(48))
    trained = tiled.image_tokens(values, parts)
    for one, other in zip(placed, trained, strict=True):
        zeros = (one == 0).all(dim=1)
        assert torch.equal(one[~zeros], other[~zeros]) and zeros.any()
        assert torch.equal(other[zeros], tiled.newline.expand(int(zeros.sum()), -1))


def test_dropout_of_the_configuration_is_switched_off(tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = config["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    found = open_checkpoint(f"llava:{folder}")
    inputs = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    still = found.encoder.hidden_states(inputs)[-1]
    found.encoder.train()
    assert torch.equal(found.encoder.hidden_states(inputs)[-1], still)
    ids = torch.tensor([[5, 6, 7]])
    still = found.language.model(ids).logits
    assert torch.equal(found.language.train().model(ids).logits, still)


def test_half_precision_opens_and_computes_in_its_type():
    found = open_checkpoint(f"llava:{checkpoint()}", dtype=torch.bfloat16)
    assert found.encoder.hidden_states(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))[
        0
    ].dtype == (torch.bfloat16)
    assert found.language.model.dtype == found.projector.linear_1.weight.dtype == torch.bfloat16


def test_gradients_reach_the_fused_tokens_through_projector_and_language_model():
    found = opened()
    inputs = original().batch["pixel_values"]
    tokens = fused_tokens(found, method_of("penultimate", found), inputs)
    tokens.requires_grad_()
    embeds = found.projector(tokens)
    found.language.model(inputs_embeds=embeds).logits.logsumexp(-1).sum().backward()
    assert tokens.grad.abs().min(dim=-1).values.max() > 0


def test_greedy_tokens_follow_the_picture():
    found = opened()
    own = method_of("penultimate", found)
    batch = dict(original().batch)
    texts = greedy(found, own, batch)
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    other = greedy(found, own, batch)
    assert not any(torch.equal(texts[row], other[row]) for row in (0, 1))
    assert torch.equal(texts[2], other[2])
