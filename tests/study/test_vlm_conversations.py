"""Conversation files: read the same in every form, and every wrong item is one error."""

import json

import numpy as np
import pytest
from conversation_files import MARK, item, picture, said, standard, written
from PIL import Image

from fusionbench.api.errors import UserError
from fusionbench.study import json_items
from fusionbench.study.conversations import ConversationFile, conversation

GOOD = json.dumps(item(None, "Q?", "A."))


def refused(folder, items, name="mix.json"):
    path = items if isinstance(items, type(folder)) else written(folder, items, name)
    with pytest.raises(UserError) as error:
        ConversationFile(path).index  # noqa: B018
    return f"{error.value.message} | {error.value.hint}"


def test_a_list_indented_or_not_and_json_lines_give_the_same_rows(tmp_path):
    items = standard(tmp_path)
    forms = [
        written(tmp_path, items, "plain.json"),
        written(tmp_path, items, "indented.json", indent=2, ensure_ascii=False),
        written(tmp_path, items, "lines.jsonl"),
    ]
    sets = [ConversationFile(path) for path in forms]
    assert len({one.index.hash for one in sets}) == 1
    for one in sets:
        assert one.index.turns.tolist() == [2, 1, 1, 1]
        assert one.index.images.tolist() == [1, 0, 2, 1]
        for number, value in enumerate(items):
            found = one[number]
            texts = [text for turn in found.turns for text in (turn.question, turn.answer)]
            assert texts == [message["value"] for message in value["conversations"]]
        assert [np.asarray(p.open()).shape for p in one[2].pictures] == [(8, 12, 3)] * 2
        assert one.index.length[1] == len("Who are you?A model.")


def test_items_are_found_across_blocks_of_any_size(tmp_path, monkeypatch):
    items = [item(None, f"Größe {n}? ∀", "é" * (n % 7 + 1)) for n in range(40)]
    path = written(tmp_path, items, indent=1, ensure_ascii=False)
    for block in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(json_items, "_BLOCK", block)
        found = list(json_items.items(path))
        assert [one.value for one in found] == items
        content = path.read_bytes()
        for one in found:
            assert json.loads(content[one.start : one.stop]) == one.value
            assert content[: one.start].count(b"\n") + 1 == one.line


def test_the_hash_follows_texts_and_images_and_not_names_of_items(tmp_path):
    items = standard(tmp_path)
    first = ConversationFile(written(tmp_path, items)).index.hash
    renamed = [{**one, "id": f"other-{n}"} for n, one in enumerate(items)]
    assert ConversationFile(written(tmp_path, renamed, "b.json")).index.hash == first
    changed = json.loads(json.dumps(items).replace("Grey.", "Red."))
    assert ConversationFile(written(tmp_path, changed, "c.json")).index.hash != first
    assert ConversationFile(written(tmp_path, items[::-1], "d.json")).index.hash != first
    picture(tmp_path, "a.png", seed=9, size=(30, 30))
    assert ConversationFile(written(tmp_path, items, "e.json")).index.hash != first


def test_a_file_is_read_once_for_its_index(tmp_path, monkeypatch):
    path = written(tmp_path, standard(tmp_path))
    first = ConversationFile(path).index
    monkeypatch.setattr("fusionbench.study.conversations.items", lambda _: pytest.fail("read"))
    again = ConversationFile(path).index
    assert again.hash == first.hash and (again.places == first.places).all()
    assert ConversationFile(path)[3].turns[0].answer == "Three."


def test_images_start_from_the_named_folder(tmp_path):
    picture(tmp_path / "pool", "a.png")
    path = written(tmp_path, [item("a.png", MARK, "Yes.")])
    assert "there is no image" in refused(tmp_path, path)
    assert ConversationFile(path, tmp_path / "pool").index.images.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"a text"', "is not a list: it starts with '\"'"),
        ("", "is not a list: it is empty"),
        ('{\n "conversations": []\n}', "line 1 is not a list"),
        ("[]", "holds no conversation"),
        (f"[{GOOD}\n {GOOD}]", "line 2: expected a comma or the end of the list, got '{'"),
        ('[\n{"a": ', "line 2: truncated or not JSON"),
        ('{"conversations": 1}\n{"conv', "line 1, item 1: no conversations, got 1"),
    ],
)
def test_a_file_that_is_no_list_is_refused_with_its_line(tmp_path, text, words):
    path = tmp_path / "mix.json"
    path.write_text(text)
    message = refused(tmp_path, path)
    assert words in message and "mix.json" in message


def test_a_truncated_line_is_refused_with_its_number(tmp_path):
    path = written(tmp_path, [item(None, "Q?", "A.")] * 3, "mix.jsonl")
    path.write_text(path.read_text()[:-20])
    assert "mix.jsonl, line 3 is truncated or not JSON" in refused(tmp_path, path)


WRONG = {
    "message 1 is from 'gpt', expected 'human'": item(None)
    | {"conversations": [{"from": "gpt", "value": "A"}, {"from": "human", "value": "Q"}]},
    "message 2 is from 'human', expected 'gpt'": item(None)
    | {"conversations": [{"from": "human", "value": "Q"}] * 2},
    "message 1 is from 'user', expected 'human'": {
        "conversations": [{"from": "user", "value": "Q"}, {"from": "gpt", "value": "A"}]
    },
    "3 messages: the last question has no answer": {"conversations": said("Q", "A", "Q")},
    "no conversations, got []": {"conversations": []},
    "no conversations, got None": {"messages": []},
    "is no object, got [1]": [1],
    "message 2 has no text `value`, got 7": {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": 7}]
    },
    "the answer of turn 2 is empty": item(None, "Q", "A", "Q", " \n"),
    "the answer of turn 1 holds an <image> mark": item("a.png", MARK, f"{MARK} A"),
    "the questions have 0 <image> marks, `image` names 1 images": item("a.png", "Q", "A"),
    "the questions have 1 <image> marks, `image` names 0 images": item(None, MARK, "A"),
    "the questions have 1 <image> marks, `image` names 2 images": item(["a.png"] * 2, MARK, "A"),
    "`image` must be a name, a list of names or absent, got 3": item(3, "Q", "A"),
    "there is no image": item("gone.png", MARK, "A"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_item_is_refused_with_file_line_and_number(tmp_path, words):
    picture(tmp_path, "a.png")
    good = item("a.png", MARK, "Yes.")
    text = refused(tmp_path, [good, good, WRONG[words]], "mix.jsonl")
    assert words in text and "mix.jsonl, line 3, item 3" in text


def test_an_unreadable_image_is_refused_where_it_is_opened(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    one = ConversationFile(written(tmp_path, [item("bad.png", MARK, "A")]))[0]
    with pytest.raises(UserError, match="mix.json, item 1: bad.png is not an image"):
        one.pictures[0].open()


def test_all_missing_images_are_counted_in_one_error(tmp_path):
    picture(tmp_path, "a.png")
    (tmp_path / "empty.png").touch()
    names = ("a.png", "gone.png", "a.png", "empty.png", "b.png")
    text = refused(tmp_path, [item(name, MARK, "A") for name in names], "mix.jsonl")
    assert "mix.jsonl, line 2, item 2: gone.png: there is no image" in text
    assert "and 2 more images are missing" in text
    text = refused(tmp_path, [item("empty.png", MARK, "A")])
    assert "item 1: empty.png is an empty file" in text


def test_an_image_is_read_by_its_content_and_not_by_its_name(tmp_path):
    # Images of OCR-VQA are GIF files that the published conversations name .jpg.
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "a.jpg", format="GIF")
    one = ConversationFile(written(tmp_path, [item("a.jpg", MARK, "A")]))[0]
    assert np.asarray(one.pictures[0].open()).tolist() == [[[255, 0, 0]] * 3] * 2


def test_a_missing_file_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no conversation file"):
        ConversationFile(tmp_path / "no.json")
    with pytest.raises(UserError, match="there is no folder of images"):
        ConversationFile(written(tmp_path, []), tmp_path / "no")


def test_a_file_that_changed_under_a_run_is_an_error(tmp_path):
    path = written(tmp_path, standard(tmp_path))
    held = ConversationFile(path)
    assert held.index.turns.sum() == 5
    path.write_text("[]")
    with pytest.raises(UserError, match="has changed since it was read"):
        held[2]


def test_the_roles_of_an_item_without_a_file_are_checked_the_same_way():
    with pytest.raises(UserError, match="set, item 4: message 1 is from 'gpt'"):
        conversation({"conversations": said("a", "b")[::-1]}, "set, item 4")
