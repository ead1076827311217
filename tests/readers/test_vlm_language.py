"""Loading language models, splicing, scoring and generating."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_languages import WIDTH, language, rows
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, Injection
from fusionbench.models.readers.labels import EncodedRow, encode
from fusionbench.models.readers.language import language_shape
from fusionbench.models.readers.load import load_language
from fusionbench.models.readers.splice import IGNORED, splice
from fusionbench.models.readers.text import Turn

TURN = Turn("<image>\nWhat color is the cube?", "red")


def saved(folder, config=LlamaConfig, **more):
    """A tiny checkpoint with weights that are not close to zero."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
                "eos_token_id": tokenizer.end,
                "bos_token_id": None,
                **more,
            }
        )
    )
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    model.save_pretrained(folder)
    tokenizer.of_hub.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    saved(folder)
    return folder


def images(count=1, tokens=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, WIDTH, generator=rng) for _ in range(count)]


def test_a_checkpoint_is_loaded_with_its_tokenizer_and_chat_format(checkpoint):
    made = load_language(f"hf:{checkpoint}")
    assert made.template.name == "chat" and made.shape.layers == 2 and made.context == 128
    assert len(made.fingerprint) == 64 and made.tokenizer.fingerprint
    assert not any(weight.requires_grad for weight in made.parameters())
    row = encode(made.tokenizer, made.template, [TURN], answer=False)
    (answer,) = made.generate(splice(made, [row], images(), side="left"), limit=3)
    assert isinstance(answer, str)
    assert load_language(f"hf:{checkpoint}", template="llava15").template.name == "llava15"


def test_generation_is_greedy_whatever_the_checkpoint_suggests(checkpoint, tmp_path):
    model = saved(tmp_path)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["do_sample"]
    answers = []
    for folder in (checkpoint, tmp_path):
        made = load_language(f"hf:{folder}")
        row = encode(made.tokenizer, made.template, [TURN], answer=False)
        answers.append(made.generate(splice(made, [row], images(), side="left"), limit=8))
    assert answers[0] == answers[1]


def test_dropout_is_off_also_in_training(tmp_path):
    saved(tmp_path, GPT2Config)
    made = load_language(f"hf:{tmp_path}").train()
    row = encode(made.tokenizer, made.template, [TURN], answer=True)
    spliced = splice(made, [row], images(), side="right")
    assert torch.equal(made.nll(spliced), made.nll(spliced))


def test_half_precision_leaves_the_angles_of_positions_alone(checkpoint):
    made = load_language(f"hf:{checkpoint}", dtype=torch.bfloat16)
    assert {weight.dtype for weight in made.parameters()} == {torch.bfloat16}
    assert made.decoder.rotary_emb.inv_freq.dtype == torch.float32
    row = encode(made.tokenizer, made.template, [TURN], answer=True)
    assert made.nll(splice(made, [row], images(), side="right")).dtype == torch.float32


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights.*layers\.1\.mlp\.up_proj"):
        load_language(f"hf:{tmp_path}")


def test_a_truncated_file_is_refused(tmp_path):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="holds no causal language model"):
        load_language(f"hf:{tmp_path}")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load_language(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_language(f"hf:{tmp_path}")
    byte_level().of_hub.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no causal language model"):
        load_language(f"hf:{tmp_path}")


def test_a_tokenizer_larger_than_the_models_table_is_refused(tmp_path):
    saved(tmp_path, vocab_size=len(byte_level()) - 1)
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens, the model's table \d+ rows"):
        load_language(f"hf:{tmp_path}")


def test_a_checkpoint_that_is_not_here_names_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="a folder works too"):
        load_language("hf:nobody/nothing")


def test_embeddings_of_another_width_than_the_layers_are_refused():
    config = OPTConfig(
        vocab_size=20,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    with pytest.raises(UserError, match="embeddings of width 16 and layers of 32"):
        language_shape(AutoModelForCausalLM.from_config(config))


def test_what_is_trained_is_a_choice(checkpoint):
    whole = load_language(f"hf:{checkpoint}", trained="full")
    assert all(weight.requires_grad for weight in whole.parameters())
    with pytest.raises(UserError, match="did you mean 'lora'"):
        load_language(f"hf:{checkpoint}", trained="lara")


def test_lora_starts_as_the_frozen_model_and_trains_its_own_weights(checkpoint):
    pytest.importorskip("peft")
    frozen = load_language(f"hf:{checkpoint}")
    made = load_language(f"hf:{checkpoint}", trained="lora", rank=2, alpha=4)
    trained = {name for name, weight in made.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    row = encode(made.tokenizer, made.template, [TURN], answer=True)
    spliced = splice(made, [row], images(), side="right")
    assert torch.equal(made.nll(spliced), frozen.nll(spliced))
    added = Injection(layer=1, when="before", values=torch.stack(images(seed=1)))
    inside = made.inside(
        Fused(tokens=torch.stack(images()), injections=(added,)), spliced, torch.nn.Identity()
    )
    loss = made.nll(spliced, inside)
    assert not torch.equal(loss, made.nll(spliced))
    loss.sum().backward()
    assert any(weight.grad.abs().sum() > 0 for weight in made.parameters() if weight.requires_grad)
    again = load_language(f"hf:{checkpoint}", trained="lora", rank=2, alpha=4)
    for one, two in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_lora_without_its_package_says_what_to_install(checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match="needs the package peft") as caught:
        load_language(f"hf:{checkpoint}", trained="lora")
    assert "[lora]" in caught.value.hint


def test_a_sequence_longer_than_the_context_is_refused(checkpoint):
    made = load_language(f"hf:{checkpoint}")
    row = encode(made.tokenizer, made.template, [TURN], answer=False)
    with pytest.raises(UserError, match="a context of 128 tokens: too short for"):
        splice(made, [row], images(tokens=128), side="left")
    spliced = splice(made, [row], images(tokens=128 - len(row.ids)), side="left")
    with pytest.raises(UserError, match="128 of image and text and 1 of the answer"):
        made.generate(spliced, limit=1)


def test_splicing_puts_text_images_and_labels_where_they_belong():
    made = language("llama")
    first = EncodedRow(
        ids=(4, 5, 6, 7), labelled=(False, False, True, True), images_at=(1, 1), query_ids=()
    )
    second = EncodedRow(ids=(8, 9), labelled=(False, True), images_at=(), query_ids=())
    third = EncodedRow(ids=(10,), labelled=(False,), images_at=(1,), query_ids=())
    given = [image.double() for image in (*images(1, 2, 1), *images(1, 3, 2), *images(1, 1, 3))]
    table = made.model.get_input_embeddings().weight
    wholes = [
        torch.cat([table[[4]], given[0], given[1], table[[5, 6, 7]]]),
        table[[8, 9]],
        torch.cat([table[[10]], given[2]]),
    ]
    labels = [[IGNORED] * 7 + [6, 7], [IGNORED, 9], [IGNORED] * 2]
    for side in ("right", "left"):
        found = splice(made, [first, second, third], given, side=side)
        starts = [0, 0, 0] if side == "right" else [0, 7, 7]
        assert found.spots == ((0, 1), (0, 3), (2, starts[2] + 1))
        for row, (whole, start) in enumerate(zip(wholes, starts, strict=True)):
            part = slice(start, start + len(whole))
            assert torch.equal(found.embeds[row, part], whole)
            assert found.mask[row].sum() == len(whole) and found.mask[row, part].all()
            assert found.labels[row, part].tolist() == labels[row]
            assert (found.labels[row] != IGNORED).sum() == sum(
                label != IGNORED for label in labels[row]
            )


def test_images_and_marks_that_differ_in_number_are_refused():
    with pytest.raises(UserError, match="2 images for 3 image marks in 3 rows"):
        splice(language("llama"), rows(answer=True), images(2), side="right")


def test_rows_that_are_padded_on_the_right_generate_nothing():
    made = language("llama")
    given = [image.double() for image in images(3)]
    spliced = splice(made, rows(answer=False), given, side="right")
    with pytest.raises(ValueError, match="padded on the right"):
        made.generate(spliced, limit=2)


def test_the_query_is_the_mean_of_token_embeddings():
    made = language("gemma3")
    ids = [(4, 5, 5), (), (6,)]
    found = made.query(ids)
    assert not found.requires_grad and found.shape == (3, WIDTH)
    for row, each in enumerate(ids):
        embeds = made.embed(torch.tensor([each], dtype=torch.long))[0]
        expected = embeds.mean(dim=0) if each else torch.zeros(WIDTH).double()
        torch.testing.assert_close(found[row], expected)


def test_the_scale_is_that_of_what_enters_the_layers():
    for family in ("llama", "gemma3"):
        made = language(family)
        whole = made.embed(torch.arange(len(made.tokenizer))[None])
        assert made.scale == pytest.approx(float(whole.std()), rel=1e-6)
    # Gemma's table is multiplied by the root of its width on the way.
    assert made.scale > 4 * float(made.model.get_input_embeddings().weight.std())


def test_injections_stay_until_the_next_call_and_no_longer():
    made = language("llama")
    given = [image.double() for image in images(3)]
    spliced = splice(made, rows(answer=True), given, side="right")
    asked = splice(made, rows(answer=False), given, side="left")
    added = Injection(layer=2, when="after", values=torch.randn(3, 3, WIDTH).double())
    fused = Fused(tokens=torch.stack(given), injections=(added,))
    inside = made.inside(fused, spliced, torch.nn.Identity())
    plain, texts = made.nll(spliced), made.generate(asked, limit=3)
    changed = made.nll(spliced, inside)
    assert "forward" in vars(made.decoder.layers[2])
    assert not torch.allclose(plain, changed)
    assert torch.equal(made.nll(spliced), plain)
    made.nll(spliced, inside)
    assert made.generate(asked, limit=3) == texts
    assert "forward" not in vars(made.decoder.layers[2])
    with made.injected(inside):
        assert torch.equal(made.nll(spliced), changed)
        assert torch.equal(made.nll(spliced), changed)
    assert torch.equal(made.nll(spliced), plain)


def test_an_answer_ends_at_its_end_mark():
    made = language("qwen2")
    given = [image.double() for image in images(3)]
    asked = splice(made, rows(answer=False), given, side="left")
    texts = made.generate(asked, limit=6)
    first = made.tokenizer.encode_offsets(texts[0])[0]
    template, made.template = made.template, replace(made.template, ends=(first[1],))
    try:
        assert made.generate(asked, limit=6)[0] == made.tokenizer.decode(first[:1])
    finally:
        made.template = template
