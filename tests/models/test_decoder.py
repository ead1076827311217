"""The decoder reader: what it sees, what a fusion can do inside it, and who runs with it."""

from dataclasses import replace

import pytest
import torch
from tiny_languages import language
from torch import nn
from toy_cells import BUDGET, EVERY_TAP, SHAPE, materials, train_cell
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Fusion
from fusionbench.api.types import Fused, Injection, ReaderPatch, Unsupported
from fusionbench.harness.model import build_model, shape_of
from fusionbench.harness.train import evaluate, train
from fusionbench.models.readers.build import build_reader
from fusionbench.models.readers.decoder import DecoderReader, decoder_shape
from fusionbench.models.readers.injection import Inside, injected
from fusionbench.models.readers.splice import LanguageProjector
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

WIDTH, TOKENS, LENGTH = 16, 6, 4
CATALOG = read_catalog()


@pytest.fixture
def reader():
    torch.manual_seed(0)
    shape = decoder_shape(WIDTH, 4)
    return DecoderReader(8, shape, query_dim=5, answers=3).double()


def given(seed=1):
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, TOKENS, 8, generator=rng).double()
    return tokens, torch.randn(2, LENGTH, 5, generator=rng).double()


def everything():
    return torch.ones(2, LENGTH, dtype=torch.bool)


def values(seed=7, width=WIDTH):
    return torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(seed)).double()


def test_padding_moves_no_answer(reader):
    tokens, question = given()
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    padded = reader(Fused(tokens=tokens), question, mask)
    changed = torch.where(mask[..., None], question, 99.0)
    assert torch.equal(padded, reader(Fused(tokens=tokens), changed, mask))
    short = reader(Fused(tokens=tokens[:1]), question[:1, :2], mask[:1, :2])
    assert torch.allclose(short[0], padded[0])


def test_it_tells_the_order_of_words_and_of_patches(reader):
    tokens, question = given()
    straight = reader(Fused(tokens=tokens), question, everything())
    for turned in ((tokens, question.flip(1)), (tokens.flip(1), question)):
        other = reader(Fused(tokens=turned[0]), turned[1], everything())
        assert not torch.allclose(straight, other)


def test_no_image_token_sees_the_question(reader):
    tokens, question = given()
    seen = []
    hook = reader.layers[-1].mlp.register_forward_hook(lambda m, i, out: seen.append(out))
    for asked in (question, question.flip(0)):
        reader(Fused(tokens=tokens), asked, everything())
    hook.remove()
    assert torch.equal(seen[0][:, :TOKENS], seen[1][:, :TOKENS])
    assert not torch.allclose(seen[0][:, -1], seen[1][:, -1])


def test_behind_a_layer_is_in_front_of_the_next(reader):
    tokens, question = given()
    behind = Injection(layer=1, when="after", values=values())
    before = Injection(layer=2, when="before", values=values())
    one, two = (
        reader(Fused(tokens=tokens, injections=(each,)), question, everything())
        for each in (behind, before)
    )
    assert torch.allclose(one, two)
    assert not torch.allclose(one, reader(Fused(tokens=tokens), question, everything()))


def test_in_front_of_the_first_layer_is_at_the_input(reader):
    tokens, question = given()
    added = Injection(layer=0, when="before", values=values())
    injected = reader(Fused(tokens=tokens, injections=(added,)), question, everything())
    at_input = Fused(tokens=tokens, after_projector=lambda projected: projected + values())
    assert torch.allclose(injected, reader(at_input, question, everything()))


def test_values_through_the_projector_are_the_readers_own_tokens(reader):
    tokens, question = given()
    raw = Injection(layer=0, when="before", values=tokens, through_projector=True)
    twice = reader(Fused(tokens=tokens, injections=(raw,)), question, everything())
    doubled = Fused(tokens=tokens, after_projector=lambda projected: 2 * projected)
    assert torch.allclose(twice, reader(doubled, question, everything()))


def test_two_injections_at_one_place_add_up(reader):
    tokens, question = given()
    both = tuple(Injection(layer=1, when="before", values=values(seed)) for seed in (1, 2))
    summed = Injection(layer=1, when="before", values=values(1) + values(2))
    one = reader(Fused(tokens=tokens, injections=both), question, everything())
    two = reader(Fused(tokens=tokens, injections=(summed,)), question, everything())
    assert torch.allclose(one, two)


def test_a_patch_runs_in_place_of_its_layer(reader):
    tokens, question = given()

    def skip(layer):
        return lambda hidden, **named: hidden

    patched = Fused(tokens=tokens, patches=(ReaderPatch(layer=2, wrap=skip),))
    without = reader(patched, question, everything())
    del reader.layers[2]
    reader.shape = replace(reader.shape, layers=3)
    assert torch.equal(without, reader(Fused(tokens=tokens), question, everything()))


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused(reader, layer):
    tokens, question = given()
    wrong = Injection(layer=layer, when="before", values=values())
    with pytest.raises(ValueError, match=r"layer -?\d of a reader that has 0\.\.3"):
        reader(Fused(tokens=tokens, injections=(wrong,)), question, everything())


def test_two_patches_of_one_layer_are_refused(reader):
    tokens, question = given()
    patch = ReaderPatch(layer=1, wrap=lambda layer: layer.forward)
    with pytest.raises(ValueError, match="replaced 2 times"):
        reader(Fused(tokens=tokens, patches=(patch, patch)), question, everything())


def test_injected_layers_are_themselves_again_afterwards(reader):
    added = Injection(layer=1, when="after", values=values())
    inside = Inside(
        fused=Fused(tokens=values(), injections=(added,)),
        layers=4,
        place=lambda v: v,
        projector=torch.nn.Identity(),
    )
    own = [layer.forward for layer in reader.layers]
    with pytest.raises(KeyError), injected(reader, inside):
        assert ["forward" in vars(layer) for layer in reader.layers] == [False, True, False, False]
        raise KeyError
    assert [layer.forward for layer in reader.layers] == own
    assert not any("forward" in vars(layer) for layer in reader.layers)


def test_methods_of_other_widths_share_all_but_the_projector():
    def built(in_dim):
        torch.manual_seed(3)
        made = build_reader("decoder", in_dim, width=16, query_dim=5, length=4, answers=3)
        return {k: v for k, v in made.state_dict().items() if not k.startswith("projector")}

    one, two = built(8), built(24)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_width_that_cannot_be_split_into_heads_is_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        decoder_shape(20, 4)


class MiddleLayer(Fusion):
    """A stand-in method."""

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((2,),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))


@pytest.mark.thorough
def test_a_cell_with_the_decoder_learns_from_image_and_question():
    record, scores = train_cell(MiddleLayer, steps=150, reader="decoder")
    assert record.score == pytest.approx(scores.mean()) and record.score > 0.8
    assert record.spec.settings == {"reader": "decoder"}


def test_the_control_with_the_decoder_is_the_penultimate_layer_of_a_study_with_the_decoder():
    card = CATALOG.methods["penultimate-decoder"]
    (chosen,) = select_methods(CATALOG, ["penultimate-decoder"])
    assert chosen.settings["reader"] == card.reader == "decoder"
    shared = materials(EVERY_TAP)
    all_decoders = replace(shared, budget=replace(BUDGET, reader="decoder"))
    plain = CATALOG.methods["penultimate"]
    scores = []
    for one, settings, given_ in (
        (card, chosen.settings, shared),
        (plain, plain.settings, all_decoders),
    ):
        model = build_model(load_method(one), settings, given_, 0)
        train(model, given_, 0, 1e-2)
        scores.append(evaluate(model, given_, "test", 16)[0])
    assert scores[0].tobytes() == scores[1].tobytes()


def test_any_method_can_be_asked_for_with_another_reader():
    (chosen,) = select_methods(CATALOG, ["scalar_mix[reader=decoder-6]"])
    assert chosen.label == "scalar_mix[reader=decoder-6]"
    assert chosen.settings["reader"] == "decoder-6"
    (plain,) = select_methods(CATALOG, ["scalar_mix"])
    assert "reader" not in plain.settings
    with pytest.raises(UserError, match="no reader 'decodr'; did you mean 'decoder'"):
        select_methods(CATALOG, ["scalar_mix[reader=decodr]"])


def test_a_reader_without_layers_says_so():
    card = CATALOG.methods["qwen3vl_deepstack"]
    assert card.reader == "decoder"
    with pytest.raises(Unsupported, match="this reader has none"):
        load_method(card)(SHAPE, **card.settings)
    fused = Fused(tokens=torch.zeros(1, 3, 8), injections=(Injection(
        layer=0, when="before", values=torch.zeros(1, 3, 8)),))  # fmt: skip
    attentive = build_reader("attentive", 8, width=8, query_dim=5, length=4, answers=3)
    with pytest.raises(Unsupported, match="this reader has none"):
        attentive(fused, torch.zeros(1, 4, 5), torch.ones(1, 4, dtype=torch.bool))


INSIDE = sorted(name for name, card in CATALOG.methods.items() if card.reader)


@pytest.mark.parametrize("name", INSIDE)
def test_several_runs_at_once_are_each_alone(name):
    card = CATALOG.methods[name]
    shape = shape_of(replace(SHAPE, grid=(4, 4), layers=24), {"reader": card.reader}, BUDGET)
    cls, runs = load_method(card), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        fusion = cls(shape, **card.settings)
        made = build_reader(card.reader, fusion.out_dim, width=16, query_dim=6, length=4, answers=3)
        runs.append(Whole(fusion, made))
    rng = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, len(fusion.taps), 3, shape.tokens, shape.dim, generator=rng)
    question = torch.randn(2, 3, 4, 6, generator=rng)
    weights, buffers = torch.func.stack_module_state(runs)

    def call(own, h, q):
        return torch.func.functional_call(runs[0], own, (h, q))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        together = torch.vmap(call)(weights | buffers, hidden, question)
    for row, run in enumerate(runs):
        torch.testing.assert_close(together[row], run(hidden[row], question[row]))


class Whole(torch.nn.Module):
    """Fusion and reader."""

    def __init__(self, fusion, reader):
        super().__init__()
        self.fusion, self.reader = fusion, reader

    def forward(self, hidden, question):
        mask = torch.ones(question.shape[:2], dtype=torch.bool)
        fused = self.fusion(hidden, question.mean(dim=1))
        return self.reader(fused, question, mask)


# The projector into a language model.


def tokens(width=24, scale=1.0):
    return scale * torch.randn(3, 50, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["normed", "plain"])
def test_its_outputs_start_at_the_scale_of_the_token_embeddings(kind):
    scale = language("llama").scale
    made = LanguageProjector(24, 32, kind=kind, scale=scale)
    assert float(made(tokens()).detach().std()) == pytest.approx(scale, rel=0.1)


def test_with_a_norm_the_scale_of_the_hidden_states_does_not_matter():
    made = LanguageProjector(24, 32, scale=0.1)
    assert torch.allclose(made(tokens()), made(tokens(scale=100.0)), atol=1e-4)


def test_plain_is_scaled_on_tokens_of_the_encoder():
    made = LanguageProjector(24, 32, kind="plain")
    made.start_at(0.1, tokens(scale=40.0))
    assert float(made(tokens(scale=40.0)).detach().std()) == pytest.approx(0.1, rel=1e-4)


def test_tokens_that_are_all_alike_set_no_scale():
    made = LanguageProjector(24, 1, kind="plain")
    with pytest.raises(ValueError, match="all alike"):
        made.start_at(0.1, torch.ones(2, 3, 24))


def test_plain_is_llavas():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=24),
        text_config=LlamaConfig(hidden_size=32),
    )
    theirs = LlavaMultiModalProjector(config)
    made = LanguageProjector(24, 32, kind="plain")
    made.load_state_dict(theirs.state_dict())
    assert torch.equal(made(tokens()), theirs(tokens()))


def test_scaling_draws_no_random_numbers():
    built = []
    for scale in (None, 0.1):
        torch.manual_seed(0)
        built.append((LanguageProjector(24, 32, scale=scale), nn.Linear(2, 2).weight))
    assert torch.equal(built[0][1], built[1][1])
    assert torch.equal(built[0][0].linear_1.weight, built[1][0].linear_1.weight)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="did you mean 'normed'"):
        LanguageProjector(24, 32, kind="norm")
