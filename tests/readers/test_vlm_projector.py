"""The projector into a language model."""

import pytest
import torch
from tiny_languages import language
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fusionbench.models.readers.splice import LanguageProjector


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
