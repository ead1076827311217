"""The order of the rows: a function of seed and step, by share, without repeats."""

import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_files import MARK, item, picture, standard, written
from PIL import Image

from fusionbench.api.benchmarks import Item, Picture
from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused
from fusionbench.harness.bundle import Bundle, Examples
from fusionbench.models.readers.labels import EncodedRow
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import Turn
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.conversations import ConversationFile
from fusionbench.study.mixture import PartCard, describe_mixture, parse_mixture
from fusionbench.study.study import SMOKE
from fusionbench.vlm import batch, evaluate
from fusionbench.vlm.batch import ReadAhead, padded, pixels
from fusionbench.vlm.processes import World
from fusionbench.vlm.rows import (
    Cached,
    ConversationRows,
    MixedPart,
    Mixture,
    TaskRows,
    TrainingRow,
    open_mixture,
    within,
)
from fusionbench.vlm.session import StageRows


class Toy:
    """Rows that know their part and number."""

    def __init__(self, name: str, count: int, images: int = 1) -> None:
        self.name, self.count = name, count
        self.images = np.full(count, images)
        self.length = np.arange(count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TrainingRow:
        return TrainingRow(name=f"{self.name}-{index}", images=(), turns=())


def part(name: str, count: int, share: float = 1.0, images: int = 1) -> MixedPart:
    card = PartCard(name=name, kind="task", version=1, share=share, rows=count, hash=name * 8)
    return MixedPart(card=card, rows=Toy(name, count, images), kept=np.arange(count))


def names(mixture: Mixture, steps: range, batch: int, seed: int = 0) -> list[str]:
    return [mixture[int(row)].name for step in steps for row in mixture.order(step, batch, seed)]


def test_the_order_is_a_function_of_seed_and_step():
    mixture = Mixture([part("a", 7), part("b", 5)])
    forward = [mixture.order(step, 4, 0).tolist() for step in range(30)]
    again = Mixture([part("a", 7), part("b", 5)])
    assert [again.order(step, 4, 0).tolist() for step in reversed(range(30))] == forward[::-1]
    assert [again.order(step, 4, 1).tolist() for step in range(30)] != forward
    # The rows drawn do not depend on how they are cut into steps.
    assert names(mixture, range(10), 4) == names(mixture, range(4), 10)


def test_it_depends_neither_on_names_nor_on_the_order_of_the_parts():
    one = Mixture([part("a", 7), part("b", 5)])
    two = Mixture([part("b", 5), part("a", 7)])
    assert names(one, range(9), 4) == names(two, range(9), 4)
    renamed = [replace(p, card=replace(p.card, name=f"x-{p.card.name}")) for p in one.parts]
    assert names(Mixture(renamed), range(9), 4) == names(one, range(9), 4)


def test_an_epoch_has_each_row_by_its_share():
    mixture = Mixture([part("a", 6), part("b", 4, share=2), part("c", 8, share=0.5)])
    assert mixture.draws == 6 + 8 + 4
    for epoch in range(3):
        drawn = Counter(names(mixture, range(epoch * 3, epoch * 3 + 3), 6))
        by_part = Counter()
        for name, count in drawn.items():
            by_part[name[0]] += count
        assert by_part == {"a": 6, "b": 8, "c": 4}
        assert {drawn[f"a-{n}"] for n in range(6)} == {1}
        assert {drawn[f"b-{n}"] for n in range(4)} == {2}


def test_no_row_comes_again_before_all_rows_of_its_part_have_come():
    mixture = Mixture([part("a", 5, share=0.6), part("b", 7, share=3)])
    drawn = names(mixture, range(60), 8)
    for name, size in (("a", 5), ("b", 7)):
        own = [one for one in drawn if one.startswith(name)]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 9 and all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 5


def test_parts_are_mixed_evenly_over_an_epoch():
    mixture = Mixture([part("a", 400), part("b", 400)])
    halves = [Counter(n[0] for n in names(mixture, range(s, s + 10), 40)) for s in (0, 10)]
    assert all(150 < half["a"] < 250 for half in halves)


def test_grouped_steps_have_rows_of_one_kind():
    parts = [part("a", 21), part("b", 11, images=0)]
    mixture = Mixture(parts, grouped=True)
    kinds = []
    for epoch in range(4):
        drawn = []
        for step in range(epoch * 8, epoch * 8 + 8):
            rows = names(mixture, range(step, step + 1), 4)
            kinds.append(len({name[0] for name in rows}))
            drawn += rows
        assert len(set(drawn)) == 32
    # 5 steps with images, 2 without, one mixed.
    assert Counter(kinds) == {1: 28, 2: 4}
    assert mixture.order(5, 4, 0).tolist() == Mixture(parts, grouped=True).order(5, 4, 0).tolist()


def test_grouping_leaves_out_what_fills_no_step_and_a_short_epoch_is_not_grouped():
    mixture = Mixture([part("a", 6), part("b", 5, images=0)], grouped=True)
    first = names(mixture, range(2), 4)
    assert len(set(first)) == 8
    assert len(names(mixture, range(2), 20)) == 40


def test_rows_that_are_too_long_are_dropped_and_counted():
    asked = []

    def fits(row: TrainingRow) -> bool:
        asked.append(row.name)
        return row.name != "a-37"

    mixture = Mixture([part("a", 40), part("b", 10)])
    kept = within(mixture, fits, sure=29)
    assert kept.dropped == {"a": 1} and mixture.dropped == {}
    # Rows with few bytes are not looked at.
    assert asked == [f"a-{n}" for n in range(30, 40)]
    drawn = Counter(names(kept, range(7), 7))
    assert "a-37" not in drawn and len(drawn) == 49 and len(kept) == 50
    # The others are drawn in the order that they have without it, and so are the parts.
    every, first = names(mixture, range(1), 50), names(kept, range(1), 49)
    for letter in "ab":
        order = [name for name in every if name[0] == letter and name != "a-37"]
        assert [name for name in first if name[0] == letter] == order
    last = max(place for place, name in enumerate(every) if name[0] == "a")
    parts = [name[0] for name in every]
    assert parts[:last] + parts[last + 1 :] == [name[0] for name in first]


def test_rows_of_several_images_are_looked_at_whatever_their_text():
    mixture = Mixture([part("a", 40), part("b", 2, images=5)])
    kept = within(mixture, lambda row: row.name != "b-1", sure=1000)
    assert kept.dropped == {"b": 1}


def test_more_than_five_percent_too_long_is_an_error():
    mixture = Mixture([part("a", 40), part("b", 10)])
    with pytest.raises(UserError) as error:
        within(mixture, lambda row: row.name not in ("a-3", "a-9", "b-1"))
    assert "3 of 50 rows are longer than the limit, the first is a-3" in error.value.message
    assert "at most 5%" in error.value.hint
    two = within(mixture, lambda row: row.name not in ("a-3", "a-9"))
    assert two.dropped == {"a": 2}


def test_an_empty_mixture_is_refused():
    with pytest.raises(UserError, match="no rows in it"):
        Mixture([])
    with pytest.raises(UserError, match="no rows in b"):
        Mixture([part("a", 1), replace(part("b", 2), kept=np.arange(0))])


def test_a_mixture_of_files_is_opened_as_it_was_described(tmp_path):
    written(tmp_path, standard(tmp_path), "one.json")
    path = written(tmp_path, [item(None, f"Q{n}", "A") for n in range(4)], "two.jsonl")
    parts = parse_mixture(["one.json", "two.jsonl[share=2]"])
    card = describe_mixture(parts, read_catalog(), SMOKE.budget, tmp_path)
    mixture = open_mixture(card, parts, {}, tmp_path)
    assert len(mixture) == card.rows == 9 and mixture.draws == 5 + 8
    drawn = Counter(names(mixture, range(13), 1))
    assert drawn["one.json, item 1, turn 2"] == 1 and drawn["two.jsonl, item 4, turn 1"] == 2
    path.write_text(path.read_text().replace("Q1", "Q7"))
    with pytest.raises(UserError, match="two.jsonl has changed since the run was planned"):
        open_mixture(card, parts, {}, tmp_path)


# A conversation of n turns is n rows, each with its history and the images it names.


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


# Images are read ahead in order, errors come in their step, padding is LLaVA's.


def pictures(count: int) -> list[Picture]:
    return [Picture(name=f"item {number}", content=bytes([number])) for number in range(count)]


def number_of(picture: Picture) -> np.ndarray:
    return np.full((1, 1, 3), picture.content[0], dtype=np.uint8)


def test_images_are_read_before_they_are_asked_for_and_once():
    read, done = [], threading.Event()

    def slow(picture: Picture) -> np.ndarray:
        time.sleep(0.002 * (picture.content[0] % 3 == 0))
        read.append(picture.name)
        if len(read) == 8:
            done.set()
        return number_of(picture)

    held = pictures(10)
    reading = ReadAhead(slow, threads=3)
    reading.expect(held[:4])
    reading.expect(held[:8])
    assert done.wait(timeout=10)
    # The last two were not announced.
    assert [int(reading(one)[0, 0, 0]) for one in reversed(held)] == list(reversed(range(10)))
    assert sorted(read) == [one.name for one in held]
    # Asked for again, an image is read again.
    assert reading(held[0])[0, 0, 0] == 0 and len(read) == 11
    reading.close()


def test_no_more_images_wait_than_allowed():
    gate, started = threading.Event(), []

    def blocked(picture: Picture) -> np.ndarray:
        started.append(picture.name)
        assert gate.wait(timeout=10)
        return number_of(picture)

    held = pictures(9)
    reading = ReadAhead(blocked, threads=9, most=3)
    reading.expect(held)
    gate.set()
    assert [int(reading(one)[0, 0, 0]) for one in held] == list(range(9))
    # Three by the pool, the others in order by whoever asked.
    assert sorted(started[:3]) == [one.name for one in held[:3]]
    assert started[3:] == [one.name for one in held[3:]]
    reading.expect(held)
    reading.close()


def test_an_error_comes_where_its_image_is_asked_for():
    def read(picture: Picture) -> np.ndarray:
        if picture.content[0] == 2:
            raise UserError(f"{picture.name} is not an image")
        return number_of(picture)

    held = pictures(4)
    reading = ReadAhead(read, threads=2)
    reading.expect(held)
    assert [int(reading(one)[0, 0, 0]) for one in (*held[:2], held[3])] == [0, 1, 3]
    with pytest.raises(UserError, match="item 2 is not an image"):
        reading(held[2])
    reading.close()


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path):
    low, high = (Picture(name="mix.json, item 1: a.png", content=tmp_path / n) for n in "lh")
    reading = ReadAhead(lambda one: one.content.name, threads=1)
    reading.expect([low])
    assert (reading(high), reading(low)) == ("h", "l")
    reading.expect([low, high])
    reading.drop()
    # What waited is gone: the images are read when they are asked for.
    assert not reading._waiting and reading(low) == "l"
    reading.close()


def test_a_process_reads_ahead_its_own_rows_and_none_behind_the_last_step():
    expected = []
    mixture = SimpleNamespace(order=lambda step, batch, seed: np.arange(batch) + batch * step)
    rows = StageRows(
        mixture=mixture, batches=SimpleNamespace(expect=lambda rows: expected.append(list(rows))),
        steps=3, batch=4, seed=0, world=World(rank=1, size=2),
    )  # fmt: skip
    assert [rows.order(step) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert expected == [[5, 7], [9, 11], [9, 11]]


@pytest.mark.parametrize("size", [(9, 4), (4, 9), (5, 5), (7, 6)])
def test_padding_puts_the_image_in_the_middle_of_the_mean_colour(size, tmp_path):
    mean = (0.48145466, 0.4578275, 0.40821073)
    image = Image.open(picture(tmp_path, "a.png", size=size)).convert("RGB")
    width, height = size
    side = max(size)
    # The rule written with arrays.
    wanted = np.empty((side, side, 3), dtype=np.uint8)
    wanted[:] = [122, 116, 104]
    top, left = (side - height) // 2, (side - width) // 2
    wanted[top : top + height, left : left + width] = np.asarray(image)
    assert (np.asarray(padded(image, mean)) == wanted).all()
    held = Picture(name="a.png", content=tmp_path / "a.png")
    assert (pixels(held, "pad", mean) == wanted).all()
    assert (pixels(held, "squash", mean) == np.asarray(image)).all()


def test_an_unknown_fit_and_a_broken_image_are_refused(tmp_path):
    held = Picture(name="row 3: a.png", content=b"nothing")
    with pytest.raises(ValueError, match="pixels must be one of squash, pad, processor"):
        pixels(held, "crop", (0, 0, 0))
    with pytest.raises(UserError, match="row 3: a.png is not an image"):
        pixels(held, "pad", (0, 0, 0))


def test_encoded_texts_are_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(batch, "KNOWN", 2)
    rows = [TrainingRow(name=word, images=(), turns=(Turn(word, word),)) for word in "abc"]
    encoded = []
    made = batch.Batches(rows, lambda row: encoded.append(row.name) or row, states=None)
    asked = [0, 1, 1, 2, 1, 0]  # the third text pushes out the first
    assert [made.encoded(rows[index]) for index in asked] == [rows[index] for index in asked]
    assert encoded == ["a", "b", "c", "a"]


def test_a_shuffled_query_does_not_depend_on_the_size_of_a_batch(monkeypatch):
    items = [
        Item(name=f"i{n}", group="", options=(), gold={"answer": "yes"}, images=(), prompt="Which?",
             question=f"q{n}")
        for n in range(9)
    ]  # fmt: skip
    monkeypatch.setattr(evaluate, "stream", lambda benchmark, source: iter(items))
    seen = {}
    for size, shuffled in [(1, 3), (4, 3), (9, 3), (4, None)]:
        model = Echo()
        asking = evaluate.Asking(
            model=model, states=Blank(), ask=words_of, told=words_of, size=size, shuffled=shuffled
        )
        evaluate.evaluate_benchmark(asking, Trivial(), None)
        seen[size, shuffled] = model.queries
    own = [item.question for item in items]
    assert seen[4, None] == own
    assert seen[1, 3] == seen[4, 3] == seen[9, 3] != own and sorted(seen[1, 3]) == own


def test_the_query_is_the_prompt_where_the_training_says_so(monkeypatch):
    one = Item(
        name="i",
        group="",
        options=("a", "b"),
        gold={"answer": "yes"},
        images=(Picture(name="p", content=b""),),
        prompt="Which? A. a",
        question="Which?",
    )
    monkeypatch.setattr(evaluate, "stream", lambda benchmark, source: iter([one]))
    for query, wanted in (("question", "Which?"), ("prompt", "<image>\nWhich? A. a")):
        model = Echo()
        asking = evaluate.Asking(
            model=model, states=Blank(), ask=words_of, told=words_of, size=1, query=query
        )
        evaluate.evaluate_benchmark(asking, Ranking(), None)
        # Of the answer, and of each option.
        assert model.queries == [wanted] * 3


def test_an_answer_ends_with_the_context_whatever_the_size_of_a_batch(monkeypatch):
    words = ["one", "one", "one two three", "one " * 7, "one " * 9, "one"]
    items = [
        Item(name=f"i{n}", group="", options=("a",), gold={"answer": "yes"}, images=(), prompt=text,
             question="q")
        for n, text in enumerate(words)
    ]  # fmt: skip
    monkeypatch.setattr(evaluate, "stream", lambda benchmark, source: iter(items))
    seen = {}
    for size in (1, 2, 6):
        model = Echo()
        asking = evaluate.Asking(
            model=model, states=Blank(), ask=counted, told=counted, size=size, context=8
        )
        found = evaluate.evaluate_benchmark(asking, Ranking(), None)
        assert found.left_out == 1 and [one.text for one in found.answers][4] == ""
        seen[size] = [limit for limit, rows in model.limits for _ in range(rows)]
    # At most 4 new tokens, and 8 positions in all.
    assert seen[1] == seen[2] == seen[6] == [4, 4, 4, 1, 4]
    assert model.losses_of == 6


def test_a_trace_counts_images_and_not_questions_of_text_alone(monkeypatch):
    shown = [True, False, False, True, False, True]
    items = [
        Item(name=f"i{n}", group="", options=(), gold={"answer": "yes"}, prompt="Which?",
             images=(Picture(name=f"p{n}", content=b""),) * has, question=str(n))
        for n, has in enumerate(shown)
    ]  # fmt: skip
    monkeypatch.setattr(evaluate, "stream", lambda benchmark, source: iter(items))
    for size in (1, 4, 6):
        asking = evaluate.Asking(
            model=Echo(), states=Blank(), ask=words_of, told=words_of, size=size
        )
        found = evaluate.evaluate_benchmark(asking, Trivial(), None)
        assert found.trace == {"seen": [pytest.approx((0 + 3 + 5) / 3)]}
    items[:] = [one for one, has in zip(items, shown, strict=True) if not has]
    assert evaluate.evaluate_benchmark(asking, Trivial(), None).trace == {}


def words_of(row):
    question = row.turns[-1].question
    return EncodedRow(ids=(1,), labelled=(False,), images_at=(), query_ids=(question,))


def counted(row):
    ids = tuple(range(len(row.turns[-1].question.split())))
    return replace(words_of(row), ids=ids, labelled=(False,) * len(ids))


class Blank:
    def shown(self, rows):
        pictures = tuple((1, (1, 1)) for images in rows for _ in images)
        return batch.BatchImages(states=None, pictures=pictures)


class Echo:
    """Keeps the queries that it is asked with."""

    device = torch.device("cpu")

    def __init__(self):
        self.queries, self.limits, self.losses_of = [], [], 0

    def eval(self):
        return self

    def answer(self, rows, *, limit):
        self.queries += [query for (query,) in rows.queries]
        self.limits.append((limit, len(rows)))
        trace = {}
        if rows.queries[0][0].isdecimal():
            # The mean over images of the question's number; of no image, that of a blank.
            numbers = [float(rows.queries[at][0]) for at in rows.asking] or [99.0]
            trace = {"seen": torch.tensor(numbers).mean()}
        return ["yes"] * len(rows), Fused(tokens=torch.zeros(len(rows), 1, 1), trace=trace)

    def losses(self, rows):
        self.queries += [query for (query,) in rows.queries]
        self.losses_of += len(rows)
        return torch.arange(len(rows))

    def most_tokens(self, rows, fused):
        return 0


class Trivial:
    max_new_tokens, ranks_options = 4, False

    def outcomes(self, answers):
        return [1.0] * len(answers)

    def guessing(self, answers):
        return 0.0

    def measures(self, answers):
        return {}


class Ranking(Trivial):
    ranks_options = True
