"""The order of the rows: a function of seed and step, by share, without repeats."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conversation_files import item, standard, written

from fusionbench.api.errors import UserError
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.mixture import PartCard, describe_mixture, parse_mixture
from fusionbench.study.study import SMOKE
from fusionbench.vlm.rows import MixedPart, Mixture, TrainingRow, open_mixture, within


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
