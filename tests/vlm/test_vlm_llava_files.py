"""What planning reads from a LLaVA checkpoint without torch, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from llava_checkpoints import Tiny, checkpoint, edit, opened
from safetensors.torch import load_file, save_file

from fusionbench.api.errors import UserError
from fusionbench.models.readers.llava.checkpoint import open_checkpoint
from fusionbench.models.readers.llava.description import KINDS, describe, own_method, unfit

NEXT = Tiny(kind="llava_next")
PLAIN = Tiny()
ONEVISION = Tiny(kind="llava_onevision", tower="siglip", select="full", layer=-1)
LEGACY = Tiny(names="4.36")


@pytest.fixture
def copied(tmp_path):
    """A copy of a checkpoint whose files may be changed."""

    def copy(made: Tiny = PLAIN) -> Path:
        return Path(shutil.copytree(checkpoint(made), tmp_path / "copy"))

    return copy


def refusal(folder: Path, *, load: bool = False) -> str:
    """The one line that a checkpoint is refused with, hint included."""
    with pytest.raises(UserError) as refused:
        open_checkpoint(f"llava:{folder}") if load else describe(f"llava:{folder}")
    assert "\n" not in refused.value.message and str(folder) in refused.value.message
    return f"{refused.value.message} {refused.value.hint}"


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_is_described_without_torch():
    folders = [str(checkpoint(made)) for made in (PLAIN, NEXT, LEGACY)]
    code = (
        "import sys\n"
        "from fusionbench.models.readers.llava.description import describe, own_method\n"
        f"print([own_method(describe('llava:' + folder)) for folder in {folders}])\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.replace("'", '"')) == ["penultimate"] * 3


@pytest.mark.parametrize("made", [PLAIN, NEXT, LEGACY, Tiny(tower="siglip"), Tiny(select="full")])
def test_the_description_is_what_is_opened(made):
    about = describe(f"llava:{checkpoint(made)}")
    found = opened(made)
    shape, card = found.encoder.shape, about.encoder
    assert (shape.layers, shape.dim, shape.grid, shape.prefix, found.encoder.size) == (
        card.layers, card.dim, card.grid, card.prefix, card.size,
    )  # fmt: skip
    config = found.language.model.config
    assert about.language.kind == config.model_type
    assert about.language.layers == config.num_hidden_layers
    assert (about.language.width, about.language.vocabulary) == (
        config.hidden_size, config.vocab_size,
    )  # fmt: skip
    assert (
        found.language.tokenizer.of_hub.convert_tokens_to_ids(about.image_token)
        == about.image_token_id
    )


def test_layers_and_selection_are_named_as_configured_and_as_resolved():
    about = describe(f"llava:{checkpoint(Tiny(layer=(-2, 2)))}")
    assert about.layers == (3, 2) and about.encoder.prefix == 1 and about.encoder.grid == (4, 4)
    assert about.note == (
        "vision_feature_layer -2, 2 of 4 blocks: hs[3], hs[2], without its first token (default)"
    )
    full = describe(f"llava:{checkpoint(Tiny(select='full', layer=-1))}")
    assert full.layers == (4,) and full.encoder.prefix == 0 and full.encoder.grid == (1, 17)
    assert full.note.endswith("hs[4], with all its tokens (full)")


def test_where_tokens_fill_no_square_methods_that_need_the_grid_do_not_fit():
    square = describe(f"llava:{checkpoint()}")
    flat = describe(f"llava:{checkpoint(Tiny(select='full'))}")
    cut = describe(f"llava:{checkpoint(Tiny(tower='siglip'))}")
    assert not unfit(square, needs_grid=True) and not unfit(square, tokens=4)
    assert not unfit(flat, tokens=4) and "17 tokens" in unfit(flat, needs_grid=True)
    assert "15 tokens" in unfit(cut, needs_grid=True)


def test_where_tiles_are_joined_methods_that_change_the_number_of_tokens_do_not_fit():
    about = describe(f"llava:{checkpoint(NEXT)}")
    assert not unfit(about, needs_grid=True) and not unfit(about, tokens=16)
    assert "16 to 4" in unfit(about, tokens=4)


def test_a_layer_that_is_listed_twice_has_no_method(copied):
    folder = copied(Tiny(layer=(-2, 2)))
    edit(folder / "config.json", vision_feature_layer=[-2, 3])
    with pytest.raises(UserError, match=r"with itself \(hs\[3\], hs\[3\]\)"):
        own_method(describe(f"llava:{folder}"))


def test_defaults_that_a_file_leaves_out_are_those_of_the_library():
    import transformers

    for name, kind in KINDS.items():
        config = getattr(transformers, kind.cls).config_class()
        assert config.model_type == name
        assert config.vision_feature_layer == kind.layer
        assert config.vision_feature_select_strategy == kind.select
        assert config.image_token_index == kind.image_token
        for field, value in kind.tower.items():
            assert getattr(config.vision_config, field) == value, (name, field)
        pinpoints = getattr(config, "image_grid_pinpoints", [])
        assert [tuple(one) for one in pinpoints] == list(kind.pinpoints)
        ratio = getattr(config, "vision_aspect_ratio", "anyres_max_0")
        assert ratio == f"anyres_max_{kind.most_tiles}"


def test_a_configuration_without_a_vision_tower_has_that_of_the_library(copied):
    folder = copied()
    edit(folder / "config.json", vision_config=None, vision_feature_layer=None)
    edit(folder / "processor_config.json", image_processor={"size": {"shortest_edge": 336}})
    about = describe(f"llava:{folder}")
    assert (about.encoder.layers, about.encoder.dim, about.encoder.grid) == (24, 1024, (24, 24))
    assert about.layers == (23,) and own_method(about) == "penultimate"


def test_the_fingerprint_follows_weights_and_configuration_and_no_release(copied):
    folder = copied()
    first = describe(f"llava:{folder}").weights
    assert first == describe(f"llava:{checkpoint()}").weights
    edit(folder / "config.json", transformers_version="4.36.0", torch_dtype="float16")
    assert describe(f"llava:{folder}").weights == first
    edit(folder / "config.json", vision_feature_layer=-1)
    other = describe(f"llava:{folder}").weights
    change_weights(folder, lambda weights: next(iter(weights.values())).add_(1))
    assert len({first, other, describe(f"llava:{folder}").weights}) == 3


def test_a_tokenizer_of_another_vocabulary_has_another_hash(copied):
    folder = copied()
    first = describe(f"llava:{folder}").tokenizer
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("Ġthe", "Ġthy"))
    assert describe(f"llava:{folder}").tokenizer != first


LOST = {
    "projector": ("multi_modal_projector.linear_2.bias", PLAIN),
    "tower": ("vision_tower.encoder.layers.3.mlp.fc2.weight", PLAIN),
    "final norm": ("vision_tower.post_layernorm.weight", PLAIN),
    "language model": ("language_model.model.layers.1.mlp.up_proj.weight", PLAIN),
    "head": ("language_model.lm_head.weight", PLAIN),
    "newline": ("image_newline", NEXT),
}


@pytest.mark.parametrize("part", LOST)
def test_a_missing_weight_is_an_error_that_names_it_and_never_random(part, copied):
    name, made = LOST[part]
    folder = copied(made)
    change_weights(folder, lambda weights: weights.pop(name))
    # Errors name the module, which has the name of the weight's end.
    end = name.removeprefix("language_model.").removeprefix("model.")
    said = refusal(folder, load=True)
    assert f"lacks weights of {KINDS[made.kind].cls}: " in said and f"{end} " in said


def test_a_missing_part_is_an_error_of_planning(copied):
    folder = copied()
    projector = [f"multi_modal_projector.linear_{i}.{n}" for i in (1, 2)
                 for n in ("weight", "bias")]  # fmt: skip
    change_weights(folder, lambda weights: [weights.pop(name) for name in projector])
    assert "no weights of its projector" in refusal(folder)


def test_unexpected_weights_and_weights_of_another_shape_are_errors(copied):
    folder = copied()
    extra = "vision_tower.encoder.layers.4.mlp.fc2.weight"
    change_weights(folder, lambda w: w.update({extra: w["language_model.lm_head.weight"].clone()}))
    said = refusal(folder, load=True)
    assert f"unexpected weights of LlavaForConditionalGeneration: model.{extra}" in said
    lost = "multi_modal_projector.linear_1.weight"
    change_weights(folder, lambda w: (w.pop(extra), w.update({lost: w[lost][:, :-1].clone()})))
    assert "cannot be loaded" in refusal(folder, load=True)


def test_buffers_that_old_releases_stored_are_no_unexpected_weights(copied):
    import torch

    folder = copied()
    old = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
    }
    change_weights(folder, lambda weights: weights.update(old))
    assert open_checkpoint(f"llava:{folder}").about.layers == (3,)


def test_truncated_and_missing_files_of_weights_are_errors_of_planning(copied):
    folder = copied(LEGACY)
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-10])
    assert f"is truncated: it has {len(whole) - 10:,} of {len(whole):,} bytes" in refusal(folder)
    second.write_bytes(whole[:20])
    assert "truncated" in refusal(folder)
    second.unlink()
    assert "lacks model-00002-of-00002.safetensors" in refusal(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)


CHANGES = {
    "another kind": ({"model_type": "llava_nxt"}, "'llava_nxt'.*did you mean 'llava_next'"),
    "another class": ({"architectures": ["LlavaModel"]}, "class LlavaModel"),
    "an encoder": (
        {"model_type": "clip", "architectures": ["CLIPModel"]},
        "used with --encoder hf:",
    ),
    "a language model": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "used with --language hf:",
    ),
    "the LLaVA repository's format": (
        {"mm_vision_tower": "openai/clip", "architectures": ["LlavaLlamaForCausalLM"]},
        "format of the LLaVA repository.*llava-hf/",
    ),
    "another tower": ({"vision_config": {"model_type": "pixtral"}}, "'pixtral'.*siglip_vision"),
    "a layer too far": ({"vision_feature_layer": -6}, r"-6 does not exist.*hs\[0..4\]"),
    "a list with one too far": ({"vision_feature_layer": [2, 5]}, r"5 does not exist"),
    "another selection": (
        {"vision_feature_select_strategy": "fulll"},
        "must be one of default, full.*did you mean 'full'",
    ),
    "no number": ({"vision_feature_layer": "second"}, "does not describe a LLaVA model"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_another_configuration_is_refused_in_one_line(case, copied):
    import re

    changes, words = CHANGES[case]
    folder = copied()
    edit(folder / "config.json", **changes)
    assert re.search(words, refusal(folder))


def test_tiles_that_cannot_be_joined_are_refused(copied):
    folder = copied(NEXT)
    edit(folder / "config.json", image_grid_pinpoints=[[28, 56], [30, 28]])
    assert "tiles of 28 pixels do not fill 30 x 28" in refusal(folder)
    edit(folder / "config.json", vision_feature_select_strategy="full")
    assert "'full' leaves 17 tokens" in refusal(folder)


def test_a_folder_without_its_configuration_or_of_no_json_is_refused(copied, tmp_path):
    folder = copied()
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    with pytest.raises(UserError, match="there is no folder"):
        describe(f"llava:{tmp_path}/nothing")
    with pytest.raises(UserError, match="names no checkpoint"):
        describe("someone/llava")


def test_an_id_that_is_not_here_is_an_error_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe("llava:someone/tiny") is None
    with pytest.raises(UserError, match="llava:someone/tiny is not on this machine.*OFFLINE"):
        open_checkpoint("llava:someone/tiny")


def test_an_id_is_found_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(checkpoint(), repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    about = describe("llava:someone/tiny")
    assert about.weights == describe(f"llava:{checkpoint()}").weights


def test_a_checkpoint_without_an_image_processor_is_refused(copied):
    folder = copied()
    edit(folder / "processor_config.json", image_processor=None)
    assert "has no image processor" in refusal(folder)


def test_an_image_processor_of_another_size_than_the_tower_is_refused(copied):
    folder = copied(Tiny(tower="siglip", select="full"))
    edit(folder / "processor_config.json", image_processor={"size": {"height": 56, "width": 56}})
    assert "images of 56 pixels, the vision tower reads 28" in refusal(folder)


def test_a_tokenizer_without_offsets_is_refused(copied):
    from transformers import ByT5Tokenizer

    folder = copied(ONEVISION)
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    assert "has no fast tokenizer" in refusal(folder, load=True)
    for path in folder.glob("*token*"):
        path.unlink()
    assert "has no tokenizer" in refusal(folder)


def test_a_tokenizer_that_is_not_stored_as_a_fast_one_is_refused(copied):
    folder = copied()
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    said = refusal(folder, load=True)
    assert "has no readable tokenizer" in said


def test_a_language_model_whose_own_head_computes_more_is_refused(copied):
    from llava_checkpoints import SCALED, save

    folder = copied()
    shutil.rmtree(folder)
    save(folder, SCALED)
    assert "logits of the parts and of the whole model differ" in refusal(folder, load=True)


def test_loading_prints_nothing_and_leaves_the_verbosity_of_the_library(capfd):
    from transformers.utils import logging

    folder = checkpoint()  # made here where this test is the first to need it
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    capfd.readouterr()
    try:
        open_checkpoint(f"llava:{folder}")
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)
    said = capfd.readouterr()
    assert said.out == said.err == ""
