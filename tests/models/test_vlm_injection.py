"""Injections into language models of transformers, by position and however the model is run."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tiny_languages import (
    FAMILIES,
    HEADS,
    INJECTED,
    LAYERS,
    LLAMA_LIKE,
    STACK,
    WIDTH,
    chunked,
    followed_by,
    language,
    logits,
    projector,
    rows,
    without_cache,
)

from fusionbench.api.types import Fused, Injection, ReaderPatch, Unsupported
from fusionbench.models.readers.injection import Inside, injected, require_form
from fusionbench.models.readers.language import LanguageModel
from fusionbench.models.readers.splice import IGNORED, splice
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method

CATALOG = read_catalog()
NEW, END = 5, 1


def fusion_of(name, made):
    card = CATALOG.methods[name]
    shape = replace(STACK, reader=made.shape)
    torch.manual_seed(3)
    fusion = load_method(card)(shape, **card.settings).double()
    # Gates that start at zero would hide everything behind them.
    rng = torch.Generator().manual_seed(4)
    for weight in fusion.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=rng).double()
    return fusion


def hidden_states(fusion, images=3):
    rng = torch.Generator().manual_seed(2)
    shape = (len(fusion.taps), images, STACK.tokens, STACK.dim)
    return torch.randn(shape, generator=rng).double()


def reaching(name):
    made = language("llama")
    fusion = fusion_of(name, made)
    return fusion(hidden_states(fusion), torch.zeros(3, 0).double())


METHODS = {
    name: reaching(name)
    for name, card in sorted(CATALOG.methods.items())
    if card.reader and "decoder" not in name
}
INJECTING = [name for name, fused in METHODS.items() if fused.injections]
PATCHING = [name for name, fused in METHODS.items() if fused.patches]
# Its image is cut by the place in the padded sequence, as published.
SHIFTED = "lsf_internal_modular-as_published"


def cases(names, families):
    """Every method on every family; on one of them in turn, and the other pairs are slow."""
    turns = {(name, families[i % len(families)]) for i, name in enumerate(names)}
    return [
        pytest.param(*pair, marks=() if pair in turns else pytest.mark.slow)
        for pair in itertools.product(names, families)
    ]


ADDING = cases(INJECTING, INJECTED)
CASES = [*ADDING, *cases(PATCHING, LLAMA_LIKE)]


class Run:
    """A method's fused tokens in a batch of one language model."""

    def __init__(self, name, family, chosen=slice(None), answer=False):
        self.made = language(family)
        fusion = fusion_of(name, self.made)
        hidden = hidden_states(fusion)[:, chosen]
        self.projector = projector(fusion.out_dim)
        self.fused = fusion(hidden, torch.zeros(hidden.shape[1], 0).double())
        self.rows = rows(answer=answer)[chosen]
        self.weights = [*fusion.parameters(), *self.projector.parameters()]

    def spliced(self, side):
        images = list(self.projector(self.fused.tokens))
        return splice(self.made, self.rows, images, side=side)

    def inside(self, spliced):
        return self.made.inside(self.fused, spliced, self.projector)

    @torch.no_grad()
    def logits(self, side, how=logits, **more):
        """Logits at each row's own positions."""
        spliced = self.spliced(side)
        with self.made.injected(self.inside(spliced)):
            found = how(self.made, spliced, **more)
        return [row[seen] for row, seen in zip(found, spliced.mask, strict=True)]

    @torch.no_grad()
    def tokens(self, **more):
        spliced = self.spliced("left")
        with self.made.injected(self.inside(spliced)):
            return self.made.model.generate(
                inputs_embeds=spliced.embeds,
                attention_mask=spliced.mask.long(),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=END,
                **more,
            )

    @torch.no_grad()
    def tokens_without_cache(self):
        spliced = self.spliced("left")
        with self.made.injected(self.inside(spliced)):
            return without_cache(self.made, spliced, NEW, never=END)

    @torch.no_grad()
    def log_probability(self, ids):
        """Of tokens behind each row, in one pass."""
        prompt = self.spliced("left")
        with self.made.injected(self.inside(prompt)):
            found = logits(self.made, followed_by(self.made, prompt, ids))
        scores = found[:, -1 - ids.shape[1] : -1].log_softmax(dim=-1)
        return scores.gather(2, ids[..., None])[..., 0].sum(dim=1)


def alike(one, two):
    return all(torch.allclose(a, b, atol=1e-8) for a, b in zip(one, two, strict=True))


def test_every_way_into_the_layers_is_met():
    assert len(INJECTING) >= 10 and len(PATCHING) == 3
    assert {one.when for fused in METHODS.values() for one in fused.injections} == {
        "before",
        "after",
    }


@pytest.mark.parametrize("family", INJECTED)
def test_the_second_step_of_generation_gets_nothing_of_the_prompt(family):
    run = Run("lsf_internal_direct", family)
    stepped = run.tokens()
    assert torch.equal(stepped, run.tokens_without_cache())
    plain = Run("lsf_internal_direct", family)
    plain.fused = replace(plain.fused, injections=())
    assert not torch.equal(stepped, plain.tokens())


@pytest.mark.few(5)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_prefill_chunks_padding_and_rows_alone_agree(name, family):
    run = Run(name, family)
    whole = run.logits("right")
    assert not alike(whole, [row.flip(0) for row in whole])
    for row in range(3):
        alone = Run(name, family, slice(row, row + 1))
        assert alike(alone.logits("right"), whole[row : row + 1])
        if name != SHIFTED:
            assert alike(alone.logits("left", chunked, size=5), whole[row : row + 1])
    if name != SHIFTED:
        assert alike(run.logits("left"), whole)
        assert alike(run.logits("left", chunked, size=7), whole)


@pytest.mark.few(5)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_generation_with_and_without_a_cache_and_of_rows_alone_agree(name, family):
    run = Run(name, family)
    stepped = run.tokens()
    assert torch.equal(stepped, run.tokens_without_cache())
    if name != SHIFTED:
        alone = Run(name, family, slice(0, 1))
        assert torch.equal(alone.tokens(), stepped[:1])


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "family"), ADDING)
def test_beams_of_a_row_get_the_rows_own_values(name, family):
    run = Run(name, family)
    beams = run.tokens(num_beams=3, return_dict_in_generate=True, output_scores=True)
    expected = run.log_probability(beams.sequences)
    torch.testing.assert_close(NEW * beams.sequences_scores, expected.to(beams.sequences_scores))
    alone = Run(name, family, slice(1, 2))
    assert torch.equal(alone.tokens(num_beams=3), beams.sequences[1:2])


@pytest.mark.few(5)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_gradients_are_the_same_with_and_without_checkpointing(name, family):
    found = []
    for checkpointing in (False, True):
        run = Run(name, family, answer=True)
        run.made = copied(run.made)
        if checkpointing:
            run.made.checkpoint_layers()
        run.made.model.train()
        spliced = run.spliced("right")
        loss = run.made.nll(spliced, run.inside(spliced)).sum()
        loss.backward()
        found.append([loss, *(weight.grad for weight in run.weights if weight.grad is not None)])
    assert len(found[0]) == len(found[1]) > 2
    assert alike(*found)
    assert all(each.abs().sum() > 0 for each in found[0])


def copied(made):
    other = copy.deepcopy(made.model)
    return LanguageModel(other, made.tokenizer, made.template, name=made.name)


def test_a_block_that_ends_before_backward_changes_no_gradient_where_layers_run_once():
    run = Run("lsf_internal_direct", "llama", answer=True)
    spliced = run.spliced("right")
    run.made.nll(spliced, run.inside(spliced)).sum().backward()
    whole = [weight.grad for weight in run.weights]
    run.made.release()
    other = Run("lsf_internal_direct", "llama", answer=True)
    spliced = other.spliced("right")
    with other.made.injected(other.inside(spliced)):
        loss = other.made.nll(spliced).sum()
    loss.backward()
    assert alike(whole, [weight.grad for weight in other.weights])


def test_values_reach_the_positions_of_their_image_alone():
    made = language("llama")
    encoded = [one for one in rows(answer=False)]
    images = [torch.randn(4, WIDTH).double() for _ in encoded]
    spliced = splice(made, encoded, images, side="left")
    ones = Injection(layer=1, when="before", values=torch.ones(3, 4, WIDTH).double())
    fused = Fused(tokens=torch.stack(images), injections=(ones,))
    seen = []
    layer = made.decoder.layers[1].input_layernorm
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for inside in (None, made.inside(fused, spliced, torch.nn.Identity())):
        with made.injected(inside):
            logits(made, spliced)
    hook.remove()
    expected = torch.zeros_like(spliced.embeds)
    for row, first in spliced.spots:
        expected[row, first : first + 4] = 1
    # After rounding: the two differ by what was added in front of this layer alone.
    torch.testing.assert_close(seen[1] - seen[0], expected)


def test_a_row_without_an_image_and_one_with_two_get_their_own_values():
    made = language("qwen2")
    one, two, _ = rows(answer=True)
    none = replace(one, images_at=())
    both = replace(two, images_at=(0, *two.images_at))
    images = [torch.randn(n, WIDTH).double() for n in (3, 3, 3)]
    spliced = splice(made, [none, both, one], images, side="right")
    assert [row for row, _ in spliced.spots] == [1, 1, 2]
    added = Injection(layer=0, when="before", values=torch.randn(3, 3, WIDTH).double())
    fused = Fused(tokens=torch.stack(images), injections=(added,))
    found = made.nll(spliced, made.inside(fused, spliced, torch.nn.Identity()))
    at_input = [image + value for image, value in zip(images, added.values, strict=True)]
    expected = made.nll(splice(made, [none, both, one], at_input, side="right"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "opt", "neox"])
def test_a_layer_without_llamas_parts_is_not_replaced(family):
    made = language(family)
    patch = ReaderPatch(layer=1, wrap=lambda layer: layer.forward)
    inside = Inside(
        fused=Fused(tokens=torch.zeros(1, 1, WIDTH), patches=(patch,)),
        layers=LAYERS,
        place=lambda values: values,
        projector=torch.nn.Identity(),
    )
    with pytest.raises(Unsupported, match="replaces a layer of the language model"):
        with injected(made.decoder, inside):
            pass
    assert not any("forward" in vars(module) for module in made.modules())


@pytest.mark.parametrize("family", [*LLAMA_LIKE, "mistral", "qwen3", "smollm3", "phi3"])
def test_layers_that_compute_what_llamas_do_may_be_replaced(family):
    made = language(family)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert require_form(made.decoder, WIDTH) is None
    after = made.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_layers_with_llamas_parts_and_another_formula_are_not_replaced():
    made = language("granite")
    with pytest.raises(Unsupported, match="combines them in another way"):
        require_form(made.decoder, WIDTH)
    run = Run("lsf_internal_modular", "llama")
    spliced = run.spliced("right")
    with pytest.raises(Unsupported, match="GraniteDecoderLayer combines"):
        made.inside(run.fused, spliced, run.projector)


def test_a_layer_is_replaced_for_one_image_a_row_only():
    run = Run("lsf_internal_modular", "llama")
    run.rows = [replace(run.rows[0], images_at=(0, 0)), run.rows[1]]
    spliced = run.spliced("right")
    with pytest.raises(Unsupported, match="none or several"):
        run.inside(spliced)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_shape_for_methods_is_the_models(family):
    shape = language(family).shape
    assert (shape.layers, shape.width, shape.heads) == (LAYERS, WIDTH, HEADS)
    assert shape.mlp == (4 * WIDTH if family == "gpt2" else 48) or family == "gemma3"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_is_that_of_a_pass_over_each_row_alone(family):
    made = language(family)
    images = [torch.randn(5, WIDTH).double() for _ in range(3)]
    encoded = rows(answer=True)
    found = made.nll(splice(made, encoded, images, side="right"))
    torch.testing.assert_close(made.nll(splice(made, encoded, images, side="left")), found)
    for row, image, loss in zip(encoded, images, found, strict=True):
        spliced = splice(made, [row], [image], side="right")
        scores = made.model(inputs_embeds=spliced.embeds).logits[0, :-1].log_softmax(dim=-1)
        labels = spliced.labels[0, 1:]
        kept = labels != IGNORED
        expected = -scores[kept].gather(1, labels[kept][:, None]).sum()
        torch.testing.assert_close(loss, expected.float())
