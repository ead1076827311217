"""A conversation of n turns is n rows, each with its history and the images it names."""

from types import SimpleNamespace

import numpy as np
import pytest
from conversation_files import MARK, item, picture, standard, written

from fusionbench.harness.bundle import Bundle, Examples
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import Turn
from fusionbench.study.conversations import ConversationFile
from fusionbench.vlm import batch
from fusionbench.vlm.rows import Cached, ConversationRows, TaskRows, TrainingRow


@pytest.fixture
def rows(tmp_path):
    return ConversationRows(ConversationFile(written(tmp_path, standard(tmp_path))))


def test_each_turn_is_a_row_with_the_turns_before_it(rows):
    assert len(rows) == 5
    first, second = rows[0], rows[1]
    what = Turn(f"{MARK}\nWhat?", "A cat.")
    colour = Turn("Which colour?", "Grey.")
    assert first.turns == (what,) and first.later == (colour,)
    assert second.turns == (what, colour) and second.later == ()
    assert [len(row.images) for row in (first, second)] == [1, 1]
    assert second.name == "mix.json, item 1, turn 2"
    with pytest.raises(IndexError):
        rows[5]


def test_rows_without_an_image_have_no_mark(rows):
    assert rows[2].images == () and rows[2].turns == (Turn("Who are you?", "A model."),)
    assert rows.images.tolist() == [1, 1, 0, 2, 1]


def test_one_image_goes_in_front_of_the_first_question_wherever_its_mark_stood(tmp_path):
    picture(tmp_path, "a.png")
    late = item("a.png", "Hello.", "Hi.", f"What is {MARK} this?", "A cat.")
    path = written(tmp_path, [late, item("a.png", f"How many?\n{MARK}", "Three.")])
    rows = ConversationRows(ConversationFile(path))
    assert rows[0].turns == (Turn(f"{MARK}\nHello.", "Hi."),) and len(rows[0].images) == 1
    assert rows[1].turns[1] == Turn("What is  this?", "A cat.")
    assert rows[2].turns == (Turn(f"{MARK}\nHow many?", "Three."),)
    kept = ConversationRows(ConversationFile(path), image_first=False)
    # The image of a later turn is not in the row of an earlier one.
    assert kept[0].turns == (Turn("Hello.", "Hi."),) and kept[0].images == ()
    assert kept[1].turns[1].question == f"What is {MARK} this?" and len(kept[1].images) == 1


def test_a_row_reads_as_llava_writes_it(tmp_path):
    picture(tmp_path, "a.png")
    late = item("a.png", "Hello. ", "Hi.", f"What is this?\n{MARK}", "A cat.", "Sure?", "Yes.")
    row = ConversationRows(ConversationFile(written(tmp_path, [late])))[1]
    template = build_template("llava15", SimpleNamespace(end=2, end_text="</s>"))
    assert template.render(row.turns, answer=True).text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nHello. ASSISTANT: Hi.</s>USER: What is this? ASSISTANT: A cat.</s>"
    )
    assert [turn.question for turn in row.later] == ["Sure?"]


def test_several_images_stay_at_their_marks_and_come_with_their_turns(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        picture(tmp_path, name, seed=number)
    path = written(tmp_path, [item(["a.png", "b.png"], f"{MARK}?", "A", f"And {MARK}?", "B")])
    one, two = list(ConversationRows(ConversationFile(path)))
    assert [image.name for image in one.images] == ["mix.json, item 1: a.png"]
    assert len(two.images) == 2 and two.turns[1].question == f"And {MARK}?"


def test_the_length_of_a_row_is_no_less_than_its_text(rows):
    for number, row in enumerate(rows):
        text = "".join(turn.question.replace(MARK, "") + turn.answer for turn in row.turns)
        assert rows.length[number] >= len(text.encode()) - 1


def test_a_task_gives_its_training_examples_with_cached_images():
    def examples(*rows: int) -> Examples:
        count = len(rows)
        return Examples(
            items=tuple(f"item-{row}" for row in rows),
            groups=tuple(f"t/{row}" for row in rows),
            rows=np.array(rows),
            questions=np.arange(count) % 2,
            answers=np.arange(count)[::-1] % 3,
        )

    bundle = Bundle(
        answers=("red", "blue", "grün"),
        questions=("Colour?", "Which?"),
        train=examples(4, 0, 2),
        val=examples(1),
        test=examples(3),
        images="",
        count=5,
    )
    rows = TaskRows("toy", bundle)
    assert len(rows) == 3 and rows.images.tolist() == [1, 1, 1]
    assert [row.images for row in map(rows.__getitem__, range(3))] == [
        (Cached(task="toy", row=row),) for row in (4, 0, 2)
    ]
    assert rows[0].turns == (Turn(f"{MARK}\nColour?", "grün"),)
    assert rows[1].turns == (Turn(f"{MARK}\nWhich?", "blue"),)
    assert rows[0].name == "toy, item-4"
    assert rows.length.tolist() == [7 + 5, 6 + 4, 7 + 3]


def test_encoded_texts_are_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(batch, "KNOWN", 2)
    rows = [TrainingRow(name=word, images=(), turns=(Turn(word, word),)) for word in "abc"]
    encoded = []
    made = batch.Batches(rows, lambda row: encoded.append(row.name) or row, states=None)
    asked = [0, 1, 1, 2, 1, 0]  # the third text pushes out the first
    assert [made.encoded(rows[index]) for index in asked] == [rows[index] for index in asked]
    assert encoded == ["a", "b", "c", "a"]
