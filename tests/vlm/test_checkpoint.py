"""Checkpoints: a training that was killed continues bit for bit, and a bad file is never used."""

import errno
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import in_process
import pytest
import torch
from benchmark_files import MARK, item, written
from llava_checkpoints import MIX, PLAIN, Tiny, checkpoint, data_root, edit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from vlm_training import BUDGET, SETUP, Case, killed, outcome, outcomes

from fusionbench.api.errors import UserError
from fusionbench.harness.train import Optimisers
from fusionbench.vlm.checkpoint import (
    Checkpoints,
    forget,
    fusion_buffers,
    load_weights,
    save_weights,
)
from fusionbench.vlm.processes import World, start

ONE = World()
# Dropout: the losses after a checkpoint depend on the random state in it.
CASE = Case(setup=replace(SETUP, micro_batch=2), model={"dropout": 0.5}, every=3)
MUON = replace(CASE, setup=replace(SETUP, budget=replace(BUDGET, optimiser="muon")))
SHARD = replace(CASE, setup=replace(SETUP, strategy="shard"))


def same(found, expected):
    assert found.history.losses == expected.history.losses
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name], weight), name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def until(case, step, folder):
    """Train to a step and stop there, in this process; the schedule is that of the whole run."""

    class StopError(Exception):
        pass

    def report(done, _):
        if done + 1 == step:
            raise StopError

    with pytest.raises(StopError):
        outcome(ONE, replace(case, folder=folder), report)


def header_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fusionbench"])


@pytest.mark.thorough
@pytest.mark.parametrize("case", [CASE, MUON], ids=["adamw", "muon"])
def test_a_process_that_was_killed_continues_bit_for_bit(tmp_path, case):
    with pytest.raises(RuntimeError, match="SIGKILL"):
        start(1, killed, (replace(case, folder=tmp_path), 0, 8), device="cpu")
    assert names(tmp_path) == ["step-00000003.safetensors", "step-00000006.safetensors"]
    found = outcome(ONE, replace(case, folder=tmp_path))
    assert found.history.resumed == 6
    same(found, outcome(ONE, case))


@pytest.mark.slow
def test_two_processes_of_which_one_was_killed_continue_bit_for_bit(tmp_path):
    for rank, case in enumerate([CASE, SHARD]):
        with pytest.raises(RuntimeError, match=f"process {rank} of 2: ended by signal SIGKILL"):
            start(2, killed, (replace(case, folder=tmp_path / str(rank)), rank, 5), device="cpu")
    cases = [CASE, replace(CASE, folder=tmp_path / "0")]
    cases += [SHARD, replace(SHARD, folder=tmp_path / "1")]
    # The other number of processes, from the checkpoint of a sharded model.
    alone = Case(setup=replace(SETUP, strategy="shard"), folder=tmp_path / "one", every=4)
    until(alone, 6, tmp_path / "one")
    for ddp, resumed, shard, continued, more in start(
        2, outcomes, ([*cases, alone],), device="cpu"
    ):
        same(resumed, ddp)
        same(continued, shard)
        assert [one.history.resumed for one in (resumed, continued, more)] == [3, 3, 4]
        whole = outcome(ONE, Case())
        assert more.history.losses == pytest.approx(whole.history.losses, abs=1e-5)


class Running(nn.Module):
    """Keeps a mean that each pass replaces, and statistics that each pass changes in place."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.norm(x)


def fused(**parts):
    model = nn.Module()
    model.fusion = Running()
    for _ in range(parts.pop("passes", 0)):
        model.fusion(torch.rand(5, 3) + 4)
    return model


def keeper_of(model, folder):
    trained = dict(model.named_parameters())
    optimisers = Optimisers(list(trained.values()), BUDGET, 0.1)
    return Checkpoints(folder, "f", trained, optimisers, ONE, partial(fusion_buffers, model))


@pytest.mark.fault(
    "stored data", "running statistics of a method in track vlm", "stored and restored"
)
def test_buffers_of_a_fusion_are_in_checkpoints_and_in_stored_models(tmp_path):
    model = fused(passes=3)
    keeper_of(model, tmp_path / "steps").write([1.0, 1.0])
    weights = {name: p for name, p in model.named_parameters()}
    save_weights(tmp_path / "model.safetensors", weights | fusion_buffers(model))
    resumed, loaded = fused(passes=1), fused(passes=1)
    assert keeper_of(resumed, tmp_path / "steps").resume() == (2, [1.0, 1.0])
    load_weights(tmp_path / "model.safetensors", loaded)
    assert float(model.fusion.mean.min()) > 1
    for other in (resumed, loaded):
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    # A checkpoint from before, without them, is of another training.
    plain = keeper_of(model, tmp_path / "old")
    plain.kept = dict
    plain.write([1.0])
    with pytest.warns(UserWarning, match="other names or shapes"):
        assert keeper_of(fused(), tmp_path / "old").resume() == (0, [])


@pytest.mark.parametrize("damage", ["truncated", "empty", "edited", "text"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_used(tmp_path, damage):
    until(CASE, 8, tmp_path)
    newest = tmp_path / "step-00000006.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "edited":
        content[-3] ^= 1
    broken = {"truncated": content[:-9], "empty": b"", "edited": content, "text": b"{}" * 50}
    newest.write_bytes(broken[damage])
    with pytest.warns(UserWarning, match="step-00000006.*is no checkpoint of this training"):
        found = outcome(ONE, replace(CASE, folder=tmp_path))
    assert found.history.resumed == 3
    same(found, outcome(ONE, CASE))
    assert len(found.history.notes) == 1
    assert str(newest) in found.history.notes[0]
    assert f"{newest.name}.unusable" in names(tmp_path)


def test_without_a_usable_checkpoint_training_starts_from_the_beginning(tmp_path):
    until(CASE, 8, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="no checkpoint"):
        found = outcome(ONE, replace(CASE, folder=tmp_path))
    assert (found.history.resumed, len(found.history.notes)) == (0, 2)
    same(found, outcome(ONE, CASE))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "another"}, "it belongs to another run"),
        ({"model": {"language": False}}, "other names or shapes of weights, e.g. 'weight/"),
    ],
)
def test_the_checkpoint_of_another_run_is_never_used(tmp_path, change, reason):
    until(CASE, 4, tmp_path)
    other = replace(CASE, **change)
    with pytest.warns(UserWarning, match=re.escape(reason)):
        found = outcome(ONE, replace(other, folder=tmp_path))
    assert found.history.resumed == 0
    same(found, outcome(ONE, other))


def test_a_second_bad_file_of_one_name_does_not_replace_the_first(tmp_path):
    for content in (b"first", b"second"):
        (tmp_path / "step-00000003.safetensors").write_bytes(content)
        with pytest.warns(UserWarning, match="no checkpoint"):
            outcome(ONE, replace(CASE, folder=tmp_path, every=0))
    aside = [tmp_path / f"step-00000003.safetensors.unusable{end}" for end in ("", ".1")]
    assert [path.read_bytes() for path in aside] == [b"first", b"second"]


@pytest.mark.parametrize("change", [{"step": 2}, {"losses": [1.0, 2.0, 3.0]}, {"format": 9}])
def test_an_edited_header_is_noticed(tmp_path, change):
    until(CASE, 4, tmp_path)
    path = tmp_path / "step-00000003.safetensors"
    text = json.dumps(header_of(path) | change)
    save_file(load_file(path), path, metadata={"fusionbench": text})
    with pytest.warns(UserWarning, match="its header is not|format 9 instead of 1"):
        assert outcome(ONE, replace(CASE, folder=tmp_path)).history.resumed == 0


def test_a_file_holds_weights_moments_and_json(tmp_path):
    until(CASE, 4, tmp_path)
    path = tmp_path / "step-00000003.safetensors"
    header = header_of(path)
    assert (header["step"], header["fingerprint"], len(header["losses"])) == (3, "toy", 3)
    assert len(bytes.fromhex(header["random"][0]["cpu"])) == len(torch.get_rng_state())
    stored = set(load_file(path))
    assert {"weight/head.weight", "exp_avg/head.weight", "exp_avg_sq/head.weight"} <= stored
    assert not {name for name in stored if "encoder" in name}
    assert {name for name in stored if "never" in name} == {"weight/never"}


def test_a_finished_training_that_is_started_again_returns_at_once(tmp_path):
    case = replace(CASE, every=5, folder=tmp_path)
    first = outcome(ONE, case)
    second = outcome(ONE, case)
    assert second.history.resumed == BUDGET.steps
    same(second, first)
    assert second.history.unmoved == first.history.unmoved == ("never",)


def test_forget_removes_checkpoints_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    until(CASE, 8, folder)
    (folder / ".step-00000009.safetensors.tmp").write_bytes(b"left by a kill")
    forget(folder)
    assert not folder.exists()
    until(CASE, 4, folder)
    (folder / "notes.txt").write_text("mine")
    forget(folder)
    assert names(folder) == ["notes.txt"]
    forget(tmp_path / "absent")


def test_what_a_kill_left_while_writing_is_removed(tmp_path):
    left = tmp_path / ".step-00000009.safetensors.tmp"
    left.write_bytes(b"half")
    assert outcome(ONE, replace(CASE, folder=tmp_path)).history.resumed == 0
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_an_error_for_people(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        outcome(ONE, replace(CASE, folder=tmp_path / "file"))


def test_a_bad_file_that_cannot_be_moved_is_an_error_for_people(tmp_path, monkeypatch):
    (tmp_path / "step-00000003.safetensors").write_bytes(b"bad")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="no permission"):
        outcome(ONE, replace(CASE, folder=tmp_path))


# A checkpoint that cannot be used is one error of `run`, and nothing of it is written.

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


@pytest.mark.thorough
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
