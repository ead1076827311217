"""Cells with a language model or a whole checkpoint from files: asked, exported, read again."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from in_process import fusionbench, run
from llava_checkpoints import Tiny, checkpoint
from llava_data import MIX, data_root
from safetensors.torch import load_file, save_file
from tiny_tokenizers import byte_level
from vlm_cells import asked_items, cell

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.records.store import Store
from fusionbench.study.training import checkpoint_folder, describe_language
from fusionbench.vlm.open import open_model


def trained(folder: Path, study: str, *options: object) -> Path:
    """The results of a study of two steps, below a folder."""
    (folder / "study.yaml").write_text(f"track: vlm\npreset: smoke\n{study}")
    out = folder / "cells"
    fusionbench("run", folder / "study.yaml", "--out", out, "--quiet", *options)
    assert not list((out / "failures").iterdir())
    return out


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A folder with a tiny causal language model and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("language"), byte_level()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=512, eos_token_id=tokenizer.end,
            bos_token_id=None,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.of_hub.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["hf:", "llava:"])
def test_files_in_two_folders_have_one_name_that_finds_them(kind, language, tmp_path):
    def card(name):
        return describe_language(*((name, "") if kind == "hf:" else ("", name)), download=False)

    first = language if kind == "hf:" else checkpoint()
    other = shutil.copytree(first, tmp_path / "elsewhere")
    found, again = card(f"{kind}{first}"), card(f"{kind}{other}")
    assert found.name == again.name and found.weights == again.weights
    assert re.fullmatch(f"{kind}(llama|llava)@[0-9a-f]{{12}}", found.name)
    # The folder that was named last.
    assert checkpoint_folder(found.name) == other
    assert card(found.name).weights == found.weights
    changed = other / "model.safetensors"
    weights = load_file(changed)
    name = sorted(weights)[0]
    weights[name] += 1
    save_file(weights, changed, metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds other weights"):
        card(found.name)


@pytest.mark.parametrize("how", ["none", "language", "lora"])
def test_a_language_model_of_files_is_exported_as_far_as_it_was_trained(how, language, tmp_path):
    if how == "lora":
        pytest.importorskip("peft")
    parts = ["fusion", "projector", *([] if how == "none" else [how])]
    study = (
        f"language: 'hf:{language}'\nmethods: [scalar_mix]\ntasks: [digits]\nmixture: [digits]\n"
        f"training: {{trained: [{', '.join(parts)}]}}\n"
    )
    out = trained(tmp_path, study)
    record = cell("scalar_mix", "digits", out)
    first = open_model(record.id, out)
    fusionbench("export", record.id, tmp_path / "model", "--out", out)
    again = open_model(str(tmp_path / "model"), out)
    (_, picture, question), *_ = asked_items("digits", 1)
    options = ("three", "7")
    losses = first.losses([picture], question, options)
    assert again.losses([picture], question, options) == losses
    assert again.ask([picture], question, limit=4) == first.ask([picture], question, limit=4)
    file = tmp_path / "model" / "language.safetensors"
    assert file.exists() == (how != "none")
    if how == "lora":
        assert all("lora_" in name for name in load_file(file))
    # Another model in the folder of the language model is noticed.
    config = language / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert config.read_text() != text
    code, _, err = run("ask", record.id, "What?", "--out", out)
    config.write_text(text)
    assert code == 2 and "holds other weights than those of" in err


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_cell_of_a_checkpoint_is_asked_exported_and_scored_again(kind, tmp_path):
    root = data_root(tmp_path / "data", captions=False)
    study = f"methods: [scalar_mix]\ntasks: [pope]\nmixture: ['{MIX}']\n"
    model = f"llava:{checkpoint(Tiny(kind=kind))}"
    out = trained(tmp_path, study, "--data-root", root, "--model", model)
    record = cell("scalar_mix", "pope", out)
    first = open_model(record.id, out)
    image = Picture(name="cubes", content=root / "coco" / "3.png")
    text = first.ask([image], "How many cubes are there?", limit=5)
    losses = first.losses([image], "How many cubes are there?", ("One.", "There are 3."))
    fusionbench("export", record.model, tmp_path / "model", "--out", out)
    again = open_model(str(tmp_path / "model"), out)
    assert again.ask([image], "How many cubes are there?", limit=5) == text
    assert again.losses([image], "How many cubes are there?", ("One.", "There are 3.")) == losses
    said = fusionbench(
        "ask", tmp_path / "model", image.content, "How many cubes are there?", "--layers",
        "--limit", 5,
    )  # fmt: skip
    assert said.startswith(f"{text}\n")
    assert said.count("  tap ") in (len(record.taps), 2 * len(record.taps))
    count = len(list(Store.open(out).records()))
    told = fusionbench("rescore", out, "--data-root", root)
    assert told == f"{count} cells with answers: {count} equal, 0 differ, 0 left out\n"
