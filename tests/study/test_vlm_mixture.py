"""A mixture is named, and its hash follows the training rows only."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from benchmark_files import MARK, item, picture, said, standard, written
from PIL import Image

from fusionbench.api.errors import UserError
from fusionbench.api.tasks import Split, TaskData
from fusionbench.registry.catalog import read_catalog
from fusionbench.study import json_items
from fusionbench.study import mixture as module
from fusionbench.study.conversations import ConversationFile, HubSet, conversation
from fusionbench.study.mixture import (
    Part,
    describe_mixture,
    open_conversations,
    parse_mixture,
)
from fusionbench.study.study import LOCAL_TASKS, SMOKE

BUDGET = replace(SMOKE.budget, train_items=3)


def toy(seed: int = 0) -> TaskData:
    """Twelve images, four examples a split."""
    images = np.random.default_rng(seed).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)

    def split(name: str, first: int) -> Split:
        return Split(
            items=tuple(f"{name}-{n}" for n in range(4)),
            images=np.arange(first, first + 4),
            questions=("What?", "Which?") * 2,
            answers=np.array([0, 1, 1, 0]),
        )

    parts = {"train": split("train", 0), "val": split("val", 4), "test": split("test", 8)}
    return TaskData(images=images, answers=("no", "yes"), **parts)


def hashed(data: TaskData, monkeypatch, limit: int = 3) -> tuple[int, str]:
    monkeypatch.setattr(module, "planned_data", lambda card, planned: data)
    return module._hashed(read_catalog().tasks["digits"], "planned", limit)


def test_the_default_names_the_eleven_local_tasks_without_licence_agreement():
    tasks = read_catalog().tasks
    assert set(LOCAL_TASKS) == {name for name, card in tasks.items() if not card.encoder} - {"elpv"}
    assert len(LOCAL_TASKS) == 11
    assert tuple(part.name for part in parse_mixture(())) == LOCAL_TASKS


def test_settings_stand_in_brackets():
    parts = parse_mixture(["digits[share=2]", "a/mix.json[images=coco, share=0.5]", "hub:o/n"])
    assert parts == (
        Part(name="digits", share=2.0),
        Part(name="a/mix.json", share=0.5, images="coco"),
        Part(name="hub:o/n"),
    )
    assert [part.is_task for part in parts] == [True, False, False]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["digits", "textile", "digits[share=2]"], "digits is named twice"),
        (["a/mix.json", "b/mix.json"], "mix.json is named twice"),
        (["digits[share=0]"], "share of digits must be above 0, got 0"),
        (["digits[share=much]"], "share of digits must be above 0, got much"),
        (["digits[shares=2]"], "no setting 'shares'; did you mean 'share'"),
        (["digits[images=coco]"], "a folder of images belongs to a file"),
        (["mix.json[config=a]"], "a folder of images belongs to a file"),
    ],
)
def test_wrong_names_are_refused(names, words):
    with pytest.raises(UserError) as error:
        parse_mixture(names)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "no task or conversation file 'digit'; did you mean 'digits'?"),
        ("planted_layer", "an encoder of its own"),
        ("no.json", "there is no conversation file"),
    ],
)
def test_parts_that_are_not_there_are_refused(name, words):
    with pytest.raises(UserError) as error:
        describe_mixture(parse_mixture([name]), read_catalog(), BUDGET)
    assert words in str(error.value)


def test_a_task_whose_package_is_missing_names_the_command(monkeypatch):
    monkeypatch.setattr("fusionbench.registry.catalog.importable", lambda name: False)
    with pytest.raises(UserError) as error:
        describe_mixture(parse_mixture(["digits"]), read_catalog(), BUDGET)
    assert "digits needs sklearn" in error.value.message and "pip install" in error.value.hint


def test_val_and_test_images_do_not_enter_the_hash_of_a_task(monkeypatch):
    first = hashed(toy(), monkeypatch)
    other = toy()
    other.images[4:] = 255 - other.images[4:]
    changed = replace(other, test=replace(other.test, questions=("New?",) * 4))
    assert hashed(changed, monkeypatch) == first
    # The fourth training example is outside the budget.
    other.images[3] = 0
    assert hashed(other, monkeypatch) == first
    assert first[0] == 3 and hashed(toy(), monkeypatch, 0)[0] == 4


def test_every_training_row_enters_the_hash_of_a_task(monkeypatch):
    base = toy()
    hashes = [hashed(base, monkeypatch)[1], hashed(base, monkeypatch, 4)[1]]
    image = toy()
    image.images[2, 1, 1, 0] ^= 1
    answer = replace(base.train, answers=np.array([0, 1, 0, 0]))
    question = replace(base.train, questions=("What?", "Which one?") * 2)
    item = replace(base.train, items=("a", *base.train.items[1:]))
    hashes += [hashed(image, monkeypatch)[1]]
    hashes += [
        hashed(replace(base, train=split), monkeypatch)[1] for split in (answer, question, item)
    ]
    # The same class numbers mean other answers.
    hashes += [hashed(replace(base, answers=("yes", "no")), monkeypatch)[1]]
    assert len(set(hashes)) == len(hashes)


def test_rows_are_hashed_once_for_a_task_and_a_budget(monkeypatch):
    card = read_catalog().tasks["scenes_count"]
    monkeypatch.setattr(module, "planned_data", lambda card, planned: toy())
    first = module._rows_of(card, "data of the test", 2)
    monkeypatch.setattr(module, "planned_data", lambda *_: pytest.fail("read again"))
    assert module._rows_of(card, "data of the test", 2) == first


def test_the_card_of_tasks_and_files_names_rows_shares_and_versions(tmp_path, monkeypatch):
    written(tmp_path, standard(tmp_path), "mix.json")
    catalog = read_catalog()
    monkeypatch.setattr(module, "_train_rows", lambda tasks, budget: [(3, "f" * 64)])
    parts = parse_mixture(["digits[share=2]", "mix.json"])
    card = describe_mixture(parts, catalog, BUDGET, tmp_path)
    digits, mix = card.parts
    assert (digits.name, digits.kind, digits.share, digits.rows) == ("digits", "task", 2.0, 3)
    assert digits.version == catalog.tasks["digits"].version
    # Four items with five turns.
    assert (mix.name, mix.kind, mix.rows, mix.version) == ("mix.json", "file", 5, 0)
    assert card.rows == 8


def test_the_hash_of_a_mixture_does_not_depend_on_names_folders_or_order(tmp_path):
    cards = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        items = standard(folder)
        written(folder, items, f"{name}.json")
        written(folder, items[:2], "part.jsonl")
        parts = parse_mixture([f"{name}.json", "part.jsonl"][:: 1 if name == "one" else -1])
        cards.append(describe_mixture(parts, read_catalog(), BUDGET, folder))
    assert cards[0].hash == cards[1].hash
    double = parse_mixture(["one.json[share=2]", "part.jsonl"])
    assert describe_mixture(double, read_catalog(), BUDGET, tmp_path / "one").hash != cards[0].hash


def test_the_same_rows_twice_are_refused(tmp_path):
    items = standard(tmp_path)
    written(tmp_path, items, "a.json")
    written(tmp_path, items, "b.jsonl")
    with pytest.raises(UserError, match="b.jsonl has the same rows as a.json"):
        describe_mixture(parse_mixture(["a.json", "b.jsonl"]), read_catalog(), BUDGET, tmp_path)


def test_a_pack_keeps_the_hash_of_the_training_rows(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    from fusionbench.study.data import pack, task_hash

    card = read_catalog().tasks["digits"]
    before = module._hashed(card, task_hash(card), 16)
    pack([card], "nano", size=4, out=tmp_path)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    assert module._hashed(card, task_hash(card), 16) == before


def test_a_mixture_is_described_without_torch_and_without_image_libraries(tmp_path):
    picture(tmp_path, "a.png")
    written(tmp_path, standard(tmp_path), "mix.json")
    code = (
        "import sys; from pathlib import Path; from fusionbench.study.mixture import *;"
        "from fusionbench.registry.catalog import read_catalog;"
        "from fusionbench.study.study import SMOKE;"
        f"describe_mixture(parse_mixture(['mix.json']), read_catalog(), SMOKE.budget, "
        f"Path({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'PIL', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Conversation files: read the same in every form, and every wrong item is one error.

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


def test_an_image_that_changed_or_went_is_noticed_although_the_index_is_remembered(tmp_path):
    path = written(tmp_path, standard(tmp_path))
    first = ConversationFile(path).index.hash
    picture(tmp_path, "a.png", seed=9, size=(30, 30))
    assert ConversationFile(path).index.hash != first
    (tmp_path / "a.png").unlink()
    assert "there is no image" in refused(tmp_path, path)


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
        (f"[{GOOD}]\n[{GOOD}]", "line 2: expected the end of the file behind the list, got '['"),
        (f"[{GOOD}] ] junk", "line 1: expected the end of the file behind the list, got ']'"),
        ("[]\n{}", "line 2: expected the end of the file behind the list, got '{'"),
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
    "`image` must be a name, a list of names or absent, got 'a\\x00.png'": item(
        "a\0.png", MARK, "A"
    ),
    "absent, got '\\ud83d.png'": item("\ud83d.png", MARK, "A"),
    "message 1 holds half of a character, 'Q \\ud83d'": item(None, "Q \ud83d", "A"),
    "message 2 holds half of a character": item(None, "Q", "\udc00"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_item_is_refused_with_file_line_and_number(tmp_path, words):
    picture(tmp_path, "a.png")
    good = item("a.png", MARK, "Yes.")
    text = refused(tmp_path, [good, good, WRONG[words]], "mix.jsonl")
    assert words in text and "mix.jsonl, line 3, item 3" in text


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
@pytest.mark.parametrize(
    ("value", "said"),
    [("[" * 100_000, "nested too deep"), ("9" * 5000, "4300 digits")],
    ids=["deep", "long"],
)
def test_json_that_python_cannot_hold_is_one_line_too(tmp_path, name, value, said):
    text = f'{{"id": {value}'
    file = tmp_path / name
    file.write_text(f"[\n{text}" if name == "mix.json" else f"{text}\n")
    with pytest.raises(UserError, match=said) as caught:
        _ = ConversationFile(file).index
    assert f"{name}, line" in caught.value.message or "item 1" in caught.value.message


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


# A set of the hub (a folder of parquet files here) holds the same rows as a conversation file.


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hub:owner/name needs the package datasets") as error:
        HubSet("owner/name")
    assert "layer-fusionbench[hub]" in error.value.hint


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def rows(folder):
    """The standard items with images in place of their names."""
    found = []
    for one in standard(folder):
        names = one.get("image", [])
        names = [names] if isinstance(names, str) else names
        images = [Image.open(folder / name).copy() for name in names]
        found.append({"id": one["id"], "images": images, "conversations": one["conversations"]})
    return found


def saved(datasets, values, folder, features=None):
    folder.mkdir()
    datasets.Dataset.from_list(values, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def features(datasets, **image):
    text = datasets.Value("string")
    return datasets.Features(
        {"id": text, "conversations": datasets.List({"from": text, "value": text}), **image}
    )


def test_lists_of_images_are_read(datasets, tmp_path):
    kinds = features(datasets, images=datasets.List(datasets.Image()))
    values = rows(tmp_path)
    name = saved(datasets, values, tmp_path / "set", kinds)
    (part,) = parse_mixture([f"hub:{name}"])
    held = open_conversations(part)
    assert held.index.turns.tolist() == [2, 1, 1, 1]
    assert held.index.images.tolist() == [1, 0, 2, 1]
    pictures = held[2].pictures
    assert all(isinstance(one.content, bytes) for one in pictures)
    for found, wanted in zip(pictures, values[2]["images"], strict=True):
        assert (np.asarray(found.open()) == np.asarray(wanted)).all()
    assert held[0].turns[1].answer == "Grey." and "item 3: image 2" in pictures[1].name


def test_one_image_a_row_or_none_is_read(datasets, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    kinds = features(datasets, image=datasets.Image())
    values = [item(None, "Q", "A") | {"image": None}]
    values += [{"id": "b", "image": {"bytes": file.getvalue()}, "conversations": said(MARK, "A")}]
    held = HubSet(saved(datasets, values, tmp_path / "set", kinds))
    assert held.index.images.tolist() == [0, 1]
    assert held[1].pictures[0].size() == len(file.getvalue())


def test_a_wrong_item_is_refused_with_its_number(datasets, tmp_path):
    values = [item(None, "Q", "A"), item(None, f"{MARK} Q", "A")]
    held = HubSet(saved(datasets, values, tmp_path / "set"))
    with pytest.raises(UserError, match="set, item 2: the questions have 1 <image> marks"):
        held.index  # noqa: B018


def test_a_set_without_conversations_or_with_names_of_images_is_refused(datasets, tmp_path):
    with pytest.raises(UserError, match="has no column conversations, it has text"):
        HubSet(saved(datasets, [{"text": "a"}], tmp_path / "one"))
    with pytest.raises(UserError, match="the column image holds .* not images") as error:
        HubSet(saved(datasets, [item("a.png", MARK, "A")], tmp_path / "two"))
    assert "JSON file" in error.value.hint


def test_a_set_that_is_not_there_is_refused(datasets, tmp_path):
    with pytest.raises(UserError, match="cannot read hub:"):
        HubSet(str(tmp_path / "nothing"))
