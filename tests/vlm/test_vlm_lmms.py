"""lmms-eval evaluates a recorded model on local tasks, offline; needs the extra `lmms`."""

from types import SimpleNamespace

import numpy as np
import pytest
from lmms_tasks import ITEMS, MISSING, TASKS, evaluate, train, write_tasks

from fusionbench.api.errors import UserError
from fusionbench.records.imports import import_folder
from fusionbench.records.store import Store

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained model in `cells` and the same test items in `tasks`."""
    folder = tmp_path_factory.mktemp("lmms")
    train(folder)
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def own(home):
    """The records of the method that sees, by task."""
    found = Store.open(home / "cells").records()
    return {one.spec.task: one for one in found if one.label == "penultimate"}


@pytest.fixture
def model(home, own):
    return opened(home, own)


def opened(home, own, **options):
    from fusionbench.vlm.lmms import FusionBench

    found = FusionBench(cell=own["digits"].id, results=str(home / "cells"), **options)
    found.task_dict["local"] = {"test": documents(home)}
    return found


def documents(home, task="scenes_count"):
    import datasets

    return datasets.Dataset.from_parquet(str(home / "tasks" / f"{task}.parquet"))


def visual(document):
    return [document["image"].convert("RGB")]


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def asking(home, count=ITEMS, **options):
    rows = documents(home)
    return requests(
        *((rows[at]["question"], {"max_new_tokens": 8, **options}, visual, at, "local", "test")
          for at in range(count))
    )  # fmt: skip


def test_scores_outcomes_and_answers_equal_those_of_our_own_tasks(home, own):
    cells = Store.open(home / "cells")
    output = evaluate(home, f"cell={own['digits'].model},results=cells")
    found, problems = import_folder(output, home / "imported", results=home / "cells")
    assert not problems
    store, records = Store.open(home / "imported"), {one.record.spec.task: one for one in found}
    assert set(records) == {f"lmms:local_{task}" for task in TASKS}
    for task in TASKS:
        record = records[f"lmms:local_{task}"].record
        assert record.score == own[task].score
        outcomes = store.outcomes(record)
        assert len(np.unique(outcomes)) == 2, "right and wrong answers, or equal proves little"
        np.testing.assert_array_equal(outcomes, cells.outcomes(own[task]))
        told = [one.text for one in store.answers(record)]
        assert told == [one.text for one in cells.answers(own[task])]
        assert record.spec.model_id == own[task].model


def test_the_size_of_a_batch_changes_no_answer(home, own):
    alone = opened(home, own).generate_until(asking(home))
    assert opened(home, own, batch_size="7").generate_until(asking(home)) == alone
    told = [one.text for one in Store.open(home / "cells").answers(own["scenes_count"])]
    assert alone == told


def test_an_answer_ends_in_front_of_the_first_text_that_ends_it(home, model):
    whole = model.generate_until(asking(home, 4))
    assert all(whole)
    cut = model.generate_until(asking(home, 4, until=["\n\n", whole[0]]))
    assert cut == ["" if text == whole[0] else text.split(whole[0])[0] for text in whole]
    assert model.generate_until(asking(home, 4, until=whole[1][-1:]))[1] == whole[1][:-1]


def test_likelihoods_are_losses_a_token_and_the_smallest_is_the_choice(home, model):
    options, rows = ["1", "2", "3", "4"], documents(home)
    said = model.generate_until(asking(home, 6))
    for at in range(6):
        question = rows[at]["question"]
        found = model.loglikelihood(
            requests(*((question, f" {o}", visual, at, "local", "test") for o in options))
        )
        # One word and the end mark: two tokens, and the sum of their losses from elsewhere.
        from fusionbench.api.benchmarks import Picture

        picture = Picture(name="test", content=visual(rows[at])[0])
        losses = model._model.losses([picture], question, options)
        np.testing.assert_allclose([loss for loss, _ in found], np.array(losses) / 2, rtol=1e-5)
        assert [greedy for _, greedy in found] == [option == said[at] for option in options]
        if said[at] in options:
            assert options[int(np.argmin([loss for loss, _ in found]))] == said[at]


def test_a_target_of_a_likelihood_may_be_a_function_of_the_document(home, model):
    question = documents(home)[0]["question"]
    both = [
        model.loglikelihood(requests((question, target, visual, 0, "local", "test")))
        for target in ("2", lambda document: "2")
    ]
    assert both[0] == both[1]
    with pytest.raises(UserError, match="a request with 2 arguments"):
        model.loglikelihood(requests(("", "2")))


def test_rounds_go_on_until_the_task_says_that_they_are_over(home, model):
    rows, heard = documents(home), []

    def following(document, previous_output, round_idx, previous_round_info):
        heard.append((list(previous_output), round_idx, previous_round_info))
        over = round_idx == 2
        return visual(rows[1]), rows[1]["question"], over, list(previous_output), round_idx

    first = (rows[0]["question"], {"max_new_tokens": 8}, visual, following, 0, "local", "test")
    (found,) = model.generate_until_multi_round(requests(first))
    alone = model.generate_until(asking(home, 2))
    assert found == alone
    assert isinstance(found, list), "lmms-eval turns a tuple into one text"
    assert heard == [(alone[:1], 1, None), (alone, 2, 1)]


def test_a_prompt_may_have_no_image_and_marks_of_its_own(home, model):
    question = documents(home)[0]["question"]

    def ask(prompt, images):
        ready = {"max_new_tokens": 8}
        return model.generate_until(requests((prompt, ready, images, 0, "local", "test")))[0]

    assert isinstance(ask(question, lambda document: []), str)
    assert ask(f"<image>\n{question}", visual) == ask(question, visual)
    with pytest.raises(UserError, match="local, document 0: the question has 2 marks"):
        ask(f"<image> <image> {question}", visual)
    with pytest.raises(UserError, match="local, document 0 shows str, which is no image"):
        ask(question, lambda document: ["film.mp4"])


def test_an_answer_is_no_longer_than_the_context(home, model):
    many = asking(home, 1, max_new_tokens=100_000)
    assert model.generate_until(many) == model.generate_until(asking(home, 1))


def test_sampling_is_not_done_and_said(home, model):
    with pytest.warns(UserWarning, match="greedily"):
        sampled = model.generate_until(asking(home, 1, do_sample=True, temperature=1.0))
    assert sampled == model.generate_until(asking(home, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": "x"}, "no argument of model_args 'cells'; did you mean 'cell'"),
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"cell": ""}, "names no cell"),
        ({"cell": "ffff"}, "no cell or model 'ffff'"),
    ],
)
def test_wrong_arguments_are_refused(home, own, options, message):
    from fusionbench.vlm.lmms import FusionBench

    good = {"cell": own["digits"].id, "results": str(home / "cells")}
    with pytest.raises(UserError, match=message):
        FusionBench(**{**good, **options})
