"""Published numbers: LLaVA-1.5 on POPE, and the example outputs of the MMMU authors."""

import json
from pathlib import Path

import pytest

from fusionbench.metrics import mmmu, pope

MMMU = Path(__file__).parent / "published" / "mmmu"
# Counts of LLaVA-1.5 on the random category (haotian-liu/LLaVA, issue 626). The questions whose
# answer is yes are the same in all three categories, so that FP of the others follows from their
# published F1, 86.29 and 84.50.
TP, FN = 1183, 317
NEGATIVES = {"random": (31, 1379), "popular": (59, 1441), "adversarial": (117, 1383)}


def pope_answers():
    for category, (fp, tn) in NEGATIVES.items():
        cells = {("yes", "yes"): TP, ("no", "yes"): FN, ("yes", "no"): fp, ("no", "no"): tn}
        for (said, label), number in cells.items():
            yield from [pope.Answer(category=category, label=label, prediction=said)] * number


def test_pope_counts_of_llava_give_the_published_numbers():
    counts = pope.Counts(TP, *NEGATIVES["random"], FN)
    assert (round(100 * counts.accuracy, 2), round(100 * counts.f1, 2)) == (88.04, 87.18)
    assert counts.f1 == pytest.approx(
        2 * counts.precision * counts.recall / (counts.precision + counts.recall)
    )


def test_pope_answers_of_llava_give_the_published_numbers():
    found = pope.measures(list(pope_answers()))
    printed = {name: round(100 * found[f"f1/{name}"], 2) for name in pope.CATEGORIES}
    assert printed == {"random": 87.18, "popular": 86.29, "adversarial": 84.50}
    assert round(100 * found["accuracy/random"], 2) == 88.04
    assert round(100 * found["f1_mean"], 2) == 85.99
    assert (found["questions/random"], found["questions"]) == (2910, 8910)


@pytest.mark.parametrize(("model", "published"), [("llava1.5_13b", 0.367), ("qwen_vl", 0.361)])
def test_mmmu_outputs_of_the_authors_give_their_accuracy(model, published):
    outputs = json.loads((MMMU / f"{model}.json").read_text())
    true = json.loads((MMMU / "answer_dict_val.json").read_text())
    assert outputs.keys() == true.keys() and len(true) == 900
    right = [
        mmmu.choice_correct(outputs[name], one["ground_truth"])
        if one["question_type"] == mmmu.MULTIPLE_CHOICE
        else mmmu.open_correct(mmmu.parse_open(outputs[name]), one["ground_truth"])
        for name, one in true.items()
    ]
    assert round(mmmu.accuracy(right), 3) == published


@pytest.mark.parametrize(("model", "published"), [("llava1.5_13b", 0.367), ("qwen_vl", 0.361)])
def test_mmmu_measures_of_the_same_outputs_agree(model, published):
    """The letters parse as themselves, with as many options as there are letters in use."""
    outputs = json.loads((MMMU / f"{model}.json").read_text())
    true = json.loads((MMMU / "answer_dict_val.json").read_text())
    answers = [
        mmmu.Answer(
            question_type=one["question_type"],
            options=tuple("ABCDEFGHI"),
            answer=one["ground_truth"],
            prediction=outputs[name],
            category=name.removeprefix("validation_").rsplit("_", 1)[0],
        )
        for name, one in true.items()
    ]
    found = mmmu.measures(answers)
    assert round(found["accuracy"], 3) == published
    assert found["random_fallbacks"] == 0 and found["questions"] == 900
    assert len([name for name in found if name.startswith("accuracy/")]) == 30
