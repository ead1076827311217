"""A checkpoint that cannot be used is one error of `run`, and nothing of it is written."""

import json
import shutil
from pathlib import Path

import in_process
import pytest
from conversation_files import MARK, item, written
from llava_checkpoints import Tiny, checkpoint, edit
from llava_data import MIX, data_root
from llava_identity import PLAIN
from safetensors.torch import load_file, save_file

STUDY = """
track: vlm
preset: smoke
model: {model}
methods: [own]
tasks: [pope]
mixture: ["{mix}"]
training: {{{training}}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_root(tmp_path_factory.mktemp("data"), captions=False)


@pytest.fixture
def refused(data, tmp_path):
    """The error of a run: one line, with a hint; nothing was trained or recorded."""

    def call(model: str, training: str = "", flags: tuple = (), root: Path = data) -> str:
        study, out = tmp_path / "study.yaml", tmp_path / "out"
        study.write_text(STUDY.format(model=model, mix=MIX, training=training))
        code, said, err = in_process.run("run", study, "--data-root", root, *flags, "--out", out)
        assert code == 2, said
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in err, err
        for part in ("cells", "answers", "models", "outcomes", "failures"):
            files = [file for file in (out / part).rglob("*") if file.is_file()]
            assert not files, files
        return err

    return call


@pytest.fixture
def copied(tmp_path):
    return lambda made=PLAIN: shutil.copytree(checkpoint(made), tmp_path / "copy")


def test_another_class_of_model(copied, refused):
    folder = copied()
    edit(folder / "config.json", model_type="qwen2_vl", architectures=["Qwen2VLForX"])
    said = refused(f"llava:{folder}")
    assert f"{folder} is no LLaVA checkpoint: model_type 'qwen2_vl'" in said
    assert "supported: LlavaForConditionalGeneration" in said


def test_a_folder_that_is_not_there(tmp_path, refused):
    assert str(tmp_path / "nothing") in refused(f"llava:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("name", ["multi_modal_projector.linear_2.bias", "layers.1.mlp.up_proj"])
def test_missing_weights(name, copied, refused):
    folder = copied()
    weights = load_file(folder / "model.safetensors")
    left_out = next(one for one in weights if name in one and "vision" not in one)
    del weights[left_out]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(f"llava:{folder}")
    assert f"{folder} lacks weights of LlavaForConditionalGeneration" in said


def test_a_truncated_file_of_weights(copied, refused):
    file = copied() / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert f"{file} is truncated: it has {len(whole) - 10:,} of" in refused(f"llava:{file.parent}")


def test_a_tokenizer_without_offsets(copied, refused):
    from transformers import ByT5Tokenizer

    folder = copied(Tiny(kind="llava_onevision", tower="siglip", select="full", layer=-1))
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    assert "has no fast tokenizer" in refused(f"llava:{folder}")


def test_no_image_processor(copied, refused):
    folder = copied()
    values = json.loads((folder / "processor_config.json").read_text())
    values.pop("image_processor")
    (folder / "processor_config.json").write_text(json.dumps(values))
    assert "has no image processor" in refused(f"llava:{folder}")


@pytest.mark.parametrize(
    ("made", "training", "wanted"),
    [
        (Tiny(), "pixels: squash", "pixels is squash, and LlavaForConditionalGeneration reads"),
        (Tiny(kind="llava_next"), "pixels: pad", "reads images with processor"),
        (Tiny(), "projector: normed", "the checkpoint's is plain"),
        (Tiny(), "grouped: 3", "grouped must be true or false"),
        (Tiny(), "template: vicuna", "template"),
        (Tiny(), "trained: [tower]", "trained"),
    ],
)
def test_what_a_checkpoint_does_not_have(made, training, wanted, refused):
    assert wanted in refused(f"llava:{checkpoint(made)}", training)


def test_a_checkpoint_brings_its_own_language_model(refused):
    said = refused(f"llava:{checkpoint()}", flags=("--language", "words"))
    assert "exclude each other" in said


def test_learning_rates_cannot_be_chosen_without_val_questions(tmp_path, data):
    study = tmp_path / "rates.yaml"
    text = STUDY.format(model=f"llava:{checkpoint()}", mix=MIX, training="")
    study.write_text(text + "budget: {lrs: [1.0e-3, 1.0e-4]}\n")
    code, _, err = in_process.run("run", study, "--data-root", data, "--out", tmp_path / "out")
    assert code and "2 learning rates, and no local task is trained on" in err


def test_images_of_another_size_than_the_towers(tmp_path, data):
    study = tmp_path / "size.yaml"
    text = STUDY.format(model=f"llava:{checkpoint()}", mix=MIX, training="")
    study.write_text(text + "budget: {image_size: 336}\n")
    code, _, err = in_process.run("run", study, "--data-root", data, "--out", tmp_path / "out")
    assert code and "image_size is 336, and the tower of" in err


def test_rows_that_the_limit_would_cut_off_are_counted_and_too_many_are_an_error(
    tmp_path, refused, monkeypatch
):
    monkeypatch.setattr("fusionbench.cli.summary._update", lambda *_: None)
    root = data_root(tmp_path / "long", captions=False)
    rows = json.loads((root / MIX).read_text())
    many = [item(None, f"Question {n}?", "Yes.", name=str(n)) for n in range(40)]
    written(root, [*rows, *many, item(None, f"Why?{' so' * 900}", "No.")], MIX)
    model = f"llava:{checkpoint()}"
    said = in_process.fusionbench(
        "run", _study(tmp_path, model), "--data-root", root, "--methods", "scalar_mix",
        "--out", tmp_path / "kept",
    )  # fmt: skip
    assert "2 cells run" in said
    from fusionbench.records.store import Store

    counts = [one.counts for one in Store.open(tmp_path / "kept").records() if one.loss]
    assert counts == [{"rows longer than the limit": 1}]
    written(root, [*rows, *(item(None, f"{n}{' so' * 900}", "No.") for n in range(4))], MIX)
    err = refused(model, "length: 700", flags=("--methods", "scalar_mix"), root=root)
    assert "4 of 24 rows are longer than the limit" in err and MARK not in err


def _study(folder: Path, model: str) -> Path:
    study = folder / "length.yaml"
    study.write_text(STUDY.format(model=model, mix=MIX, training="length: 700"))
    return study
