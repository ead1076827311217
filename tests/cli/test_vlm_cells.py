"""`ask`, `export` and `rescore` at the command line."""

import pytest
from vlm_cells import asked_items, cell, copied, save_picture, trained_folder

from fusionbench.api.errors import UserError
from fusionbench.cli.models import split_words
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

QUESTION = "how many shapes are there?"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return save_picture(tmp_path_factory.mktemp("ask") / "picture.png")


def test_ask_prints_the_answer_and_nothing_else(call, image):
    from fusionbench.vlm.open import open_model

    record, folder = cell("scalar_mix", "scenes_count"), trained_folder()
    code, out, err = call("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3)
    (_, picture, _), *_ = asked_items("scenes_count", 1)
    wanted = open_model(record.id, folder).ask([picture], QUESTION, limit=3)
    assert (code, out, err) == (0, f"{wanted}\n", "")


def test_ask_with_layers_prints_weights_and_changes(call, image):
    record, folder = cell("scalar_mix", "scenes_count"), trained_folder()
    arguments = ("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3, "--layers")
    code, out, _ = call(*arguments)
    assert code == 0
    lines = out.splitlines()
    assert lines[1].startswith("log-probability of the answer: -")
    assert lines[2] == "layer_weights, the method's own:"
    taps = [f"tap {tap}" for (tap,) in record.taps]
    assert [line.split(":")[0].strip() for line in lines[3 : 3 + len(taps)]] == taps
    assert "the mean of the others instead" in lines[3 + len(taps)]
    assert [line.split(":")[0].strip() for line in lines[4 + len(taps) :]] == taps
    _, out, _ = call("ask", cell("penultimate").id, image, QUESTION, "--out", folder, "--layers")
    assert "the method has no weights of layers of its own" in out
    assert "without one layer: not defined: " in out


def test_an_exported_model_is_asked_from_its_folder(call, image, tmp_path):
    record, folder = cell("mema"), trained_folder()
    code, out, _ = call("export", record.model, tmp_path / "model", "--out", folder)
    assert (code, out) == (0, f"{tmp_path / 'model'}\n")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{100 * record.score:.2f} %" in card
    asked = ("ask", record.id, image, QUESTION, "--out", folder, "--limit", 3)
    again = ("ask", tmp_path / "model", image, QUESTION, "--limit", 3)
    assert call(*again) == call(*asked)


def test_what_cannot_be_asked_or_exported_is_an_error_of_one_line(call, image, tmp_path):
    folder = copied(tmp_path / "cells")
    record = cell("mema")
    (folder / "models" / f"{record.model}.safetensors").unlink()
    for command in (("ask", record.id, image, QUESTION), ("export", record.id, tmp_path / "new")):
        code, out, err = call(*command, "--out", folder)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: cell {record.id} has no weights: ")
        unknown = (command[0], "f" * 20, *command[2:])
        code, out, err = call(*unknown, "--out", folder)
        assert (code, out) == (2, "")
        assert "; the nearest is " in err
    code, _, err = call("export", cell("blind").id, folder, "--out", folder)
    assert code == 2 and "exists already" in err
    code, _, err = call("ask", record.id, tmp_path / "no.png", QUESTION, "--out", folder)
    assert code == 2 and "there is no picture" in err
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = ("ask", cell("blind").id, tmp_path / "broken.png", QUESTION, "--out", folder)
    code, _, err = call(*broken)
    assert code == 2 and "is not an image that can be read" in err
    assert not (tmp_path / "new").exists()


def test_an_exported_folder_is_not_exported_again(call, tmp_path):
    folder = trained_folder()
    assert call("export", cell("blind").id, tmp_path / "one", "--out", folder)[0] == 0
    code, _, err = call("export", tmp_path / "one", tmp_path / "two", "--out", folder)
    assert code == 2 and "is an exported model already" in err


def test_a_question_comes_behind_the_pictures(image):
    pictures, question = split_words([str(image), str(image), "Which is larger?"])
    assert ([one.name for one in pictures], question) == ([str(image)] * 2, "Which is larger?")
    assert split_words(["Who?"]) == ([], "Who?")
    assert split_words(["Why " * 5000])[0] == []
    with pytest.raises(UserError, match="there is no question behind"):
        split_words([str(image)])


def test_rescore_exits_with_1_on_a_difference_and_says_which(call, tmp_path, monkeypatch):
    folder = copied(tmp_path / "cells")
    code, out, err = call("rescore", folder)
    assert (code, out, err) == (0, "8 cells with answers: 8 equal, 0 differ, 0 left out\n", "")
    card = read_catalog().tasks["digits"]
    with monkeypatch.context() as patch:
        patch.setattr(type(load_task(card)), "judge", lambda self, text, example: 0.5)
        code, out, _ = call("rescore", folder)
    assert code == 1
    assert f"{cell('mema').id} mema on digits: differs\n  16 of 16 outcomes\n" in out
    assert out.endswith("8 cells with answers: 4 equal, 4 differ, 0 left out\n")
    (folder / "answers" / f"{cell('mema').id}.jsonl.gz").write_bytes(b"")
    code, out, err = call("rescore", folder)
    assert (code, out) == (1, "7 cells with answers: 7 equal, 0 differ, 0 left out\n")
    assert cell("mema").id in err
