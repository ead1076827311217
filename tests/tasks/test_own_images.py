"""One's own images without Python: folders of classes, tables, and words for what is wrong."""

import csv
import json
import shutil

import in_process
import numpy as np
import pytest
from in_process import fusionbench
from PIL import Image
from toy_suite import section

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.api.folders import content_id, guessed, read_images, read_rows
from fusionbench.api.tasks import Example, ScoredItems, Scoring, data_hash, judged, validate
from fusionbench.records.store import Store

SIZE = (20, 16)


def picture(file, *key, size=SIZE):
    """Noise that depends on the key alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng([hash_of(one) for one in key]).integers(0, 255, (*size[::-1], 3))
    Image.fromarray(drawn.astype(np.uint8)).save(file)


def hash_of(key):
    return sum(ord(letter) * 31**place for place, letter in enumerate(str(key)))


def classes(home, names=("cat", "dog"), count=10, size=SIZE):
    for name in names:
        for row in range(count):
            picture(home / name / f"{row}.png", name, row, size=size)
    return home


def table(home, rows, columns=("image", "question", "answer", "split"), name="questions.csv"):
    for image in {row[0] for row in rows}:
        picture(home / image, image)
    lines = [columns, *rows]
    if name.endswith(".jsonl"):
        text = "\n".join(json.dumps(dict(zip(columns, row, strict=False))) for row in rows)
    else:
        text = "\n".join(",".join(line) for line in lines)
    (home / name).write_text(text + "\n")
    return home


def rows(count=10, split=True):
    names = ["train"] * (count - 4) + ["val"] * 2 + ["test"] * 2
    return [
        (f"{row}.png", "is it even?", ("yes", "no")[row % 2], *([names[row]] if split else []))
        for row in range(count)
    ]


def load(home, side=224):
    data = read_images(home, read_rows(home), side=side)
    validate(data)
    return data


def test_class_folders_are_dealt_so_that_each_class_is_in_each_split(tmp_path):
    data = load(classes(tmp_path / "own", ("cat", "dog", "eel")))
    assert data.answers == ("cat", "dog", "eel") and data.images.shape == (30, 16, 20, 3)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [18, 6, 6]
    for name in ("train", "val", "test"):
        assert set(data.split(name).answers.tolist()) == {0, 1, 2}
    assert guessed(data) == pytest.approx(1 / 3)


def test_splits_of_one_s_own_are_kept_and_val_is_taken_from_train_where_it_lacks(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            for row in range(count):
                picture(tmp_path / split / name / f"{row}.png", split, name, row)
    data = load(tmp_path)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [16, 4, 6]
    assert all(item.startswith("test/") for item in data.test.items)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "valid", "test"), {"train", "val", "test"}),
        (("Train", "Val", "TEST"), {"train", "val", "test"}),
        (("train", "test", ".ipynb_checkpoints"), {"train", "test"}),
        (("train", "test", "__MACOSX"), {"train", "test"}),
        (("Training", "Testing"), {"train", "test"}),
    ],
)
def test_folders_of_splits_are_known_in_any_case_and_hidden_ones_are_left_out(
    tmp_path, names, splits
):
    for name in names:
        classes(tmp_path / name)
    found = read_rows(tmp_path)
    assert {row.split for row in found} == splits and {row.answer for row in found} == {
        "cat",
        "dog",
    }


def test_a_folder_beside_splits_is_named_but_a_class_may_be_called_train(tmp_path):
    for name in ("train", "test", "ground_truth"):
        classes(tmp_path / "mvtec" / name)
    with pytest.raises(UserError, match="ground_truth lies beside the splits test and train"):
        read_rows(tmp_path / "mvtec")
    names = {"train", "car", "bus", "_nothing"}
    classes(tmp_path / "traffic", names=sorted(names))
    assert {row.answer for row in read_rows(tmp_path / "traffic")} == names


def test_splits_of_other_names_become_no_classes(tmp_path):
    for name in ("part1", "part2"):
        classes(tmp_path / name)
    with pytest.raises(UserError, match="part1 and part2 have the same folders: as splits"):
        read_rows(tmp_path)


def test_no_class_and_no_image_disappears_without_a_word(tmp_path):
    classes(tmp_path)
    (tmp_path / "bird").mkdir()
    with pytest.raises(UserError, match="bird has no image") as refused:
        read_rows(tmp_path)
    assert ".png" in refused.value.hint
    (tmp_path / "bird").rmdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image, and not taken for one")
    assert len(read_rows(tmp_path)) == 20
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"an image all the same")
    with pytest.raises(UserError, match="IMG_1.HEIC is no image that can be read"):
        read_rows(tmp_path)


def test_two_answers_about_copies_of_an_image_are_refused(tmp_path):
    classes(tmp_path)
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    with pytest.raises(UserError, match="has the pixels of") as refused:
        load(tmp_path)
    assert "dog" in str(refused.value) and "cat" in str(refused.value)


def test_an_image_of_more_than_8_bits_is_refused_wherever_it_is_opened(tmp_path):
    deep = np.full((16, 16), 3500, np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(deep + number).save(tmp_path / name / f"{number}.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        load(tmp_path)
    file = tmp_path / "a" / "0.png"
    for content in (file, file.read_bytes(), Image.fromarray(deep)):
        with pytest.raises(UserError, match="more than 8 bits"):
            Picture(name="one", content=content).open()


@pytest.mark.parametrize("name", ["questions.csv", "questions.jsonl"])
def test_a_table_is_read_with_its_splits(tmp_path, name):
    data = load(table(tmp_path, rows(), name=name))
    assert data.answers == ("no", "yes") and len(data.train) == 6
    assert data.test.questions == ("is it even?",) * 2
    assert sorted(data.test.items) == ["8.png: is it even?", "9.png: is it even?"]


def test_images_of_other_sizes_are_padded_to_squares_and_equal_ones_are_left_alone(tmp_path):
    home = classes(tmp_path / "own")
    assert load(home).images.shape[1:3] == (16, 20)
    assert load(home, side=10).images.shape[1:3] == (10, 10)
    picture(home / "cat" / "wide.png", "wide", size=(100, 20))
    data = load(home, side=50)
    assert data.images.shape[1:3] == (50, 50)
    # A wide picture has grey above and below.
    wide = next(one for one in data.images if (one[0] == 128).all() and (one[19] == 128).all()
                and (one[25] != 128).any())  # fmt: skip
    assert (wide[:20] == 128).all() and (wide[30:] == 128).all()


def test_a_picture_is_turned_as_its_camera_noted(tmp_path):
    home = classes(tmp_path / "own")
    before = load(home).images.shape
    turned = Image.open(home / "cat" / "0.png").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(home / "cat" / "0.png", exif=exif)
    assert Image.open(home / "cat" / "0.png").size == SIZE[::-1]
    assert load(home).images.shape == before


def test_the_task_is_that_of_the_content_wherever_the_folder_lies(tmp_path):
    first = classes(tmp_path / "one" / "place")
    shutil.copytree(first, tmp_path / "two")
    second = tmp_path / "two"
    ids = [content_id(home, read_rows(home)) for home in (first, second)]
    assert ids[0] == ids[1]
    assert data_hash(load(first)) == data_hash(load(second))
    picture(second / "cat" / "0.png", "another")
    assert content_id(second, read_rows(second)) != ids[0]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
def test_a_text_may_hold_what_unicode_calls_a_line_break(tmp_path, mark):
    picture(tmp_path / "0.png", 0)
    row = {"image": "0.png", "question": f"is it{mark}even?", "answer": "yes"}
    texts = {
        "questions.csv": "\n".join([",".join(row), ",".join(row.values())]),
        "questions.jsonl": json.dumps(row, ensure_ascii=False),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
        (found,) = read_rows(tmp_path, str(tmp_path / name))
        assert found.question == row["question"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "0.png", "question": "q", "answer": "a", "answer": "b"}', "'answer' occurs tw"),
        ('{"image": "0.png", "question": "q", "answer": ["a", "b"]}', "answer must be a text"),
    ],
)
def test_an_answer_of_a_json_line_is_one_text(tmp_path, line, words):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "questions.jsonl").write_text(line)
    with pytest.raises(UserError, match=words) as told:
        read_rows(tmp_path)
    assert "questions.jsonl:1: " in told.value.message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("image;question;answer\na.png;q;yes\n", "csv:1: no column 'image'", "separate fields by"),
        ("image,question,answer\n", "questions.csv has no row", "image, question and answer"),
    ],
)
def test_a_table_of_another_kind_or_without_rows_is_named(tmp_path, text, message, hint):
    (tmp_path / "questions.csv").write_text(text)
    with pytest.raises(UserError) as told:
        read_rows(tmp_path)
    assert message in told.value.message and hint in told.value.hint


@pytest.fixture
def usual_limit():
    """The longest field of a CSV as a new process has it; reading a TSV of images lifts it."""
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


def change(home, line, text):
    lines = (home / "questions.csv").read_text().splitlines()
    lines[line - 1] = text
    (home / "questions.csv").write_text("\n".join(lines) + "\n")


TABLE = {
    "missing column": (1, "image,question,anwser,split", ":1: no column 'answer'; did you mean "
                       "'anwser'?"),
    "empty value": (4, "2.png,is it even?,,train", ":4: answer is empty"),
    "missing image": (5, "gone.png,is it even?,yes,train", ":5: there is no image "),
    "no such split": (6, "4.png,is it even?,yes,tset", ":6: no split 'tset'; did you mean 'test'?"),
    "comma": (2, "0.png,is it even, or odd?,even,train", ":2: 5 fields, the header has 4"),
    "short row": (3, "1.png,is it even?,no", ":3: 3 fields, the header has 4"),
    "open quotes": (11, '9.png,is it even?,"no,test', ":11: not CSV: unexpected end of data"),
    "long field": (2, f"0.png,{'q' * 131_073},yes,train", ":2: not CSV: field larger than "),
    "column twice": (1, "image,question,answer,answer", ":1: 'answer' occurs twice"),
    "duplicate row": (4, "1.png,is it even?,no,train", ":4: 'is it even?' about 1.png stands in "),
    "two answers": (4, "1.png,is it even?,yes,train", "already, answered 'no' there"),
    "unseen answer": (10, "8.png,is it even?,maybe,test", ":10: the answer 'maybe' of the test "
                      "split is never seen in training (1 such rows)"),
    "one image in two splits": (10, "1.png,is it odd?,no,test", ":10: 1.png is in test, and the "
                                "same image is in train"),
    "a split for some": (3, "1.png,is it even?,no,", ":3: split is empty, and other rows have one"),
}  # fmt: skip


@pytest.mark.usefixtures("usual_limit")
@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_row_is_named_with_its_file_and_line(tmp_path, name):
    line, text, words = TABLE[name]
    home = table(tmp_path, rows())
    change(home, line, text)
    with pytest.raises(UserError) as told:
        load(home)
    assert words in told.value.message and str(home / "questions.csv") in told.value.message
    assert told.value.hint


def test_broken_files_are_named_all_at_once(tmp_path):
    home = table(tmp_path, rows())
    (home / "3.png").write_bytes((home / "3.png").read_bytes()[:200])
    (home / "5.png").write_text("no picture")
    with pytest.raises(UserError) as told:
        load(home)
    assert "questions.csv:7: " in told.value.message and "5.png is no image" in told.value.message
    assert "(and 1 more images)" in told.value.message


def empty(home):
    home.mkdir()


def flat(home):
    picture(home / "a.png", "a")


WRONG = {
    "nothing there": (lambda home: None, "no folder "),
    "an empty folder": (empty, "has no folder of a class and no questions.csv"),
    "images without classes": (flat, "has no folder of a class and no questions.csv"),
    "a class too small": (lambda home: classes(home, count=4), "has 4 different images"),
    "one class": (lambda home: classes(home, ("cat",)), "has one answer only: 'cat'"),
    "only train": (lambda home: classes(home / "train"), "val, test is missing"),
    "too few rows": (
        lambda home: table(home, rows(10, split=False)[:4], ("image", "question", "answer")),
        "no question falls to val",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_no_task_is_told_so_in_words(tmp_path, name):
    make, words = WRONG[name]
    make(tmp_path / "own")
    with pytest.raises(UserError) as told:
        load(tmp_path / "own")
    assert words in told.value.message and told.value.hint


@pytest.mark.thorough
def test_a_run_of_a_folder_resumes_and_is_the_same_elsewhere(tmp_path):
    home, out = classes(tmp_path / "own"), tmp_path / "out"
    run = ("run", "--methods", "penultimate", "--preset", "smoke", "--device", "cpu", "--quiet",
           "--out", out)  # fmt: skip
    code, _, said = in_process.run(*run, "--tasks", f"folder:{home}")
    assert code == 0, said
    assert f"note: folder:{home} is the task images-" in said
    assert "20 images of 20 x 16, 2 answers, 12 train, 4 val, 4 test examples" in said
    home.rename(tmp_path / "moved")
    again = in_process.fusionbench(*run, "--tasks", f"folder:{tmp_path / 'moved'}")
    assert "0 cells run, 1 were there" in again
    (cell,) = (out / "cells").iterdir()
    assert str(tmp_path) not in cell.read_text()
    cell.unlink()
    assert "1 cells run" in in_process.fusionbench("resume", out, "--quiet")


def test_check_looks_at_tasks_and_says_what_a_small_test_set_means(call, tmp_path):
    code, out, _ = call("check", f"folder:{classes(tmp_path / 'own')}")
    assert code == 0 and "20 images of 20 x 16, 2 answers" in out
    assert "note: 4 test examples: one score is known to about 49 points either way" in out
    file = tmp_path / "task.py"
    file.write_text(
        "from fusionbench.api import FolderTask, task\n"
        "@task('mine', version=1, family='mine', group='fine')\n"
        f"class Mine(FolderTask):\n    images = {str(tmp_path / 'own')!r}\n    chance = 0.1\n"
    )
    code, out, _ = call("check", file)
    assert code == 1 and "fault: chance is 0.1, and the answer 'cat' alone scores 0.5" in out


@pytest.mark.thorough
def test_new_task_writes_a_package_whose_tests_pass(call, tmp_path):
    home = table(tmp_path / "photos", rows(20))
    code, out, said = call(
        "new-task", "evens", "--images", home, "--questions", home / "questions.csv",
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, said
    package = tmp_path / "fusionbench-evens"
    assert pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(package)]) == 0
    code, out, said = call("check", package / "fusionbench_evens.py")
    assert code == 0 and "evens: 20 images of 20 x 16" in out, said
    code, _, said = call("new-task", "odd", "--questions", home / "questions.csv")
    assert code == 2 and "add --images DIR" in said


def test_the_hash_of_a_task_file_notices_an_image_that_changed(tmp_path):
    from fusionbench.registry.catalog import read_catalog
    from fusionbench.study.data import task_hash

    home, file = classes(tmp_path / "own"), tmp_path / "task.py"
    file.write_text(
        "from fusionbench.api import FolderTask, task\n"
        "@task('mine', version=1, family='mine', group='fine')\n"
        f"class Mine(FolderTask):\n    images = {str(home)!r}\n    chance = 0.5\n"
    )
    card = read_catalog([str(file)]).tasks["mine"]
    assert card.reads == (str(home),)
    before = task_hash(card)
    picture(home / "cat" / "0.png", "another")
    assert task_hash(card) != before


# A plug-in task in one file with a metric that is no mean, and one whose answers are judged.

PLUGIN = '''
"""Is there something bright? As POPE asks: F1 beside accuracy; a judge reads the answers."""

import numpy as np
from fusionbench.api import Split, Task, TaskData, task


@task("bright", version=1, family="bright", group="fine")
class Bright(Task):
    chance = 0.6

    def load(self):
        rng = np.random.default_rng(0)
        answers = (rng.random(300) < 0.4).astype(np.int64)
        images = rng.integers(0, 120, (300, 16, 16, 3)).astype(np.uint8)
        images[answers == 1, 4:12, 4:12] += 60
        rows = {"train": range(0, 100), "val": range(100, 150), "test": range(150, 300)}
        splits = {
            name: Split(
                items=tuple(f"bright/{row}" for row in part), images=np.array(part),
                questions=("is there something bright?",) * len(part), answers=answers[part],
            )
            for name, part in rows.items()
        }
        return TaskData(images=images, answers=("no", "yes"), **splits)

    def metrics(self, outcomes, items):
        yes = np.array([answer == "yes" for answer in items.answers])
        hits = outcomes[yes].sum()
        return super().metrics(outcomes, items) | {
            "f1": 2 * hits / max(2 * hits + (1 - outcomes).sum(), 1)
        }


@task("spoken", version=1, family="bright", group="semantic")
class Spoken(Bright):
    free_text = True

    def judge(self, text, example):
        """Half a point for the other answer, so that every outcome shows who gave it."""
        assert text in ("yes", "no") and example.question.endswith("?")
        return 1.0 if text == example.answer else 0.5
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("metrics")
    (place / "bright.py").write_text(PLUGIN)
    fusionbench(
        "run", "--preset", "smoke", "--tasks", "bright,spoken", "--methods", "last", "--seeds", "4",
        "--quiet", "--plugin", place / "bright.py", "--out", place / "out",
    )  # fmt: skip
    return place / "out"


def test_a_record_has_each_named_metric(folder):
    for record in Store.open(folder).records():
        assert record.status == "done", record.reason
        assert record.scores["accuracy"] == record.score
        assert 0 <= record.scores["f1"] <= 1 and len(record.left_out["f1"]) == 32
        assert list(record.left_out) == ["f1"]


def test_the_main_table_shows_the_f1_with_an_interval(folder):
    with (folder / "report" / "tables" / "main.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "f1"]
    assert {(row["method"], row["task"]) for row in rows} == {
        (method, task) for method in ("last",) for task in ("bright", "spoken")
    }
    records = list(Store.open(folder).records())
    for row in rows:
        here = [r for r in records if (r.label, r.spec.task) == (row["method"], row["task"])]
        mean = np.mean([record.scores["f1"] for record in here])
        assert float(row["mean"]) == pytest.approx(mean, abs=1e-6)
        low, high = float(row["ci_low"]), float(row["ci_high"])
        assert low < high and low <= float(row["mean"]) <= high
    page = section(folder / "report", "main")
    assert "bright: f1" in page and "±" in page.split("bright: f1")[1]
    assert "bright: f1" in (folder / "report" / "report.md").read_text()


def test_judged_answers_are_the_outcomes(folder):
    store = Store.open(folder)
    for record in store.records():
        values = set(np.unique(store.outcomes(record)))
        assert values <= ({0.5, 1.0} if record.spec.task == "spoken" else {0.0, 1.0})


ITEMS = ScoredItems(names=("a", "b"), groups=("1", "2"), questions=("?", "?"),
                    answers=("Two dogs", "red"))  # fmt: skip


def test_the_default_judge_ignores_case_and_space_and_the_default_metric_is_the_mean():
    outcomes = judged(Scoring(), ["  two DOGS", "blue"], ITEMS)
    assert outcomes.tolist() == [1.0, 0.0] and outcomes.dtype == np.float32
    assert Scoring().metrics(outcomes, ITEMS) == {"accuracy": 0.5}


def test_an_outcome_of_a_judge_outside_0_to_1_is_refused():
    class Generous(Scoring):
        def judge(self, text: str, example: Example) -> float:
            return 2.0

    with pytest.raises(ValueError, match="from 0 to 1, got 2 to 2"):
        judged(Generous(), ["red", "red"], ITEMS)
