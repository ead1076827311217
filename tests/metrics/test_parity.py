"""Every recorded metric case comes out equal: each item, the aggregate and the edge cases."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from metric_cases import FOLDER, PROBES, RAISES, REPLAYS, SHIPPED, cases, mismatches

from fusionbench.api.errors import UserError
from fusionbench.metrics import anls, bootstrap, evalai, mmbench, mme, mmmu, pope, tallies, textvqa
from fusionbench.metrics.bootstrap import paired, weights

CASES = cases()
EDGES = [(metric, name) for metric, case in CASES.items() for name in case["edge_cases"]]


@pytest.mark.parametrize("metric", CASES)
def test_a_recorded_case_comes_out_equal(metric):
    assert mismatches(metric, CASES[metric]) == []


def test_every_recorded_metric_is_replayed():
    assert CASES.keys() <= REPLAYS.keys()
    assert cases(SHIPPED).keys() == REPLAYS.keys()


@pytest.mark.parametrize("metric", cases(SHIPPED))
def test_a_changed_result_is_noticed(metric):
    case = json.loads(json.dumps(cases(SHIPPED)[metric]))
    first = case["items"][0]["official"]
    for name in first:
        changed = dict(first, **{name: "changed"})
        case["items"][0]["official"] = changed
        assert mismatches(metric, case)
    case["items"][0]["official"] = first
    assert not mismatches(metric, case)
    for name in case["aggregate"]:
        assert mismatches(metric, dict(case, aggregate=dict(case["aggregate"], **{name: -1})))


@pytest.mark.parametrize(("metric", "edge"), EDGES)
def test_an_edge_case_has_a_value_or_a_refusal(metric, edge):
    recorded = CASES[metric]["edge_cases"][edge]
    if (metric, edge) in PROBES:
        probe = PROBES[metric, edge]
        assert {given: probe(given) for given in recorded} == recorded
    else:
        HANDLED[metric, edge](recorded)


def no_positive_answer(recorded):
    """The official script divides by zero."""
    assert recorded.startswith(RAISES)
    answers = [
        pope.Answer(category="random", label=label, prediction="no") for label in ("yes", "no")
    ]
    found = pope.measures(answers)
    assert found["f1/random"] == 0 and found["precision/random"] is None
    assert found["accuracy/random"] == 0.5 and found["recall/random"] == 0


def more_answers_than_labels(recorded):
    """Ours refuses; the official counts are those of the answers without the surplus."""
    predictions, official = recorded
    parsed = [pope.parse(text) for text in predictions]
    labels = sum(official[cell] for cell in ("TP", "FP", "TN", "FN"))
    assert labels < len(predictions)
    with pytest.raises(UserError, match=f"{len(predictions)} answers for {labels} labels"):
        pope.counts(parsed, ["yes"] * labels)
    found = [
        pope.counts(parsed[:labels], guess)
        for guess in itertools.product(("yes", "no"), repeat=labels)
    ]
    assert (official["TP"], official["FP"], official["TN"], official["FN"]) in {
        (one.tp, one.fp, one.tn, one.fn) for one in found
    }
    assert parsed.count("yes") / len(parsed) == official["yes_ratio"]


def not_ten_answers(recorded):
    assert recorded.startswith(RAISES)
    with pytest.raises(UserError, match="9 reference answers"):
        textvqa.score(textvqa.Answer(prediction="a", answers=("a",) * 9))


def a_tab_in_an_answer(recorded):
    """The official lines are separated by tabs; ours have fields."""
    assert recorded.startswith(RAISES)
    assert mme.parse("Yes\tindeed") == "yes"


def an_odd_number_of_questions(recorded):
    assert recorded.startswith(RAISES)
    one = mme.Answer(task="count", image="1.jpg", label="Yes", prediction="Yes")
    with pytest.raises(UserError, match="MME count: 3 questions"):
        mme.measures([one] * 3)


def an_empty_category(recorded):
    assert mmmu.accuracy([]) == recorded["acc"]


HANDLED = {
    ("pope", "all_predictions_no"): no_positive_answer,
    ("pope", "more_predictions_than_labels"): more_answers_than_labels,
    ("textvqa", "nine_answers"): not_ten_answers,
    ("mme", "prediction_with_tab"): a_tab_in_an_answer,
    ("mme", "odd_number_of_lines"): an_odd_number_of_questions,
    ("mmmu", "empty_category"): an_empty_category,
}


def test_every_edge_case_is_tried():
    shipped = {(m, name) for m, case in cases(SHIPPED).items() for name in case["edge_cases"]}
    assert shipped == PROBES.keys() | HANDLED.keys()


def test_an_item_that_stops_the_official_tool_has_the_value_of_equal_texts():
    stopped = [
        one
        for one in cases(SHIPPED)["anls_docvqa"]["items"]
        if str(one["official"]["m4c_anls"]).startswith(RAISES)
    ]
    assert stopped
    for one in stopped:
        given = anls.Answer(prediction=one["prediction"], answers=tuple(one["answers"]))
        assert anls.m4c_anls(given) == 1.0


def test_the_contractions_are_those_of_the_official_table():
    probe = cases(SHIPPED)["vqav2"]["edge_cases"]["digit_article_contraction_probe"]
    changing = {word for word, result in probe.items() if word.lower() != result}
    assert set(evalai.CONTRACTIONS) == changing


@pytest.mark.skipif(FOLDER == SHIPPED, reason="no other folder was named")
def test_the_other_folder_has_metric_cases():
    assert CASES


# Published numbers: LLaVA-1.5 on POPE, and the example outputs of the MMMU authors.

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


# The bootstrap draws images, the same for both methods, and agrees with a plain loop.

RANDOM = np.random.default_rng(0)


def bootstrap_pope_answers(right: float, images: int = 12, seed: int = 0):
    """Six questions an image, two in each category; `right` is the share of right answers."""
    random = np.random.default_rng(seed)
    return [
        pope.Answer(
            category=category,
            label=label,
            prediction=label if random.random() < right else {"yes": "no", "no": "yes"}[label],
        )
        for _ in range(images)
        for category in pope.CATEGORIES
        for label in ("yes", "no")
    ]


def mme_answers(right: float, images: int = 6, seed: int = 0):
    random = np.random.default_rng(seed)
    return [
        mme.Answer(
            task=task,
            image=f"{task} {image}",
            label=label,
            prediction=label if random.random() < right else "other",
        )
        for image in range(images)
        for task in (*mme.PERCEPTION, *mme.COGNITION)
        for label in ("Yes", "No")
    ]


def mmbench_answers(right: float, questions: int = 12, seed: int = 0):
    random = np.random.default_rng(seed)
    return [
        mmbench.Answer(
            index=index + rotation * mmbench.ROTATION,
            options=("cat", "dog", "cow"),
            answer="ABC"[rotation],
            prediction="ABC"[rotation] if random.random() < right else "Z",
        )
        for rotation in range(3)
        for index in range(questions)
    ]


POPE_IMAGES = [str(i // 6) for i in range(72)]
MME_IMAGES = [str(i // 28) for i in range(168)]
MMBENCH_IMAGES = [str(i % 12) for i in range(36)]
KINDS = {
    "pope": (bootstrap_pope_answers, POPE_IMAGES, pope.measures, tallies.pope_tally),
    "mme": (mme_answers, MME_IMAGES, mme.measures, tallies.mme_tally),
    "mmbench": (mmbench_answers, MMBENCH_IMAGES, mmbench.measures, tallies.mmbench_tally),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_of_a_tally_give_the_measures(kind):
    make, _, measures, tally = KINDS[kind]
    found = measures(make(0.7))
    for name, value in tally(make(0.7)).now().items():
        assert value == pytest.approx(found[name], abs=1e-12), name


def differences_of_answers(measures, first, second, images, *, draws, seed):
    """Estimate, 95 % interval and p of each measure, from answers that are drawn themselves."""
    members = {}
    for index, image in enumerate(images):
        members.setdefault(image, []).append(index)

    def difference(times):
        rows = [i for own, n in zip(members.values(), times, strict=True) for i in own * int(n)]
        one, two = measures([first[i] for i in rows]), measures([second[i] for i in rows])
        both = {name for name in one if None not in (one[name], two.get(name))}
        return {name: one[name] - two[name] for name in both}

    drawn = [difference(row) for block in weights(len(members), draws, seed) for row in block]
    found = {}
    for name, estimate in difference([1] * len(members)).items():
        known = np.array([one[name] for one in drawn if name in one])
        side = min((known <= 0).sum(), (known >= 0).sum())
        p = min(1.0, 2 * (side + 1) / (len(known) + 1))
        found[name] = (estimate, *np.quantile(known, [0.025, 0.975]), p)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_resampled_sums_give_the_measures_of_resampled_answers(kind):
    make, images, measures, tally = KINDS[kind]
    first, second = make(0.8, seed=1), make(0.6, seed=2)
    fast = paired([tally(first)], [tally(second)], images, draws=40, seed=3)
    slow = differences_of_answers(measures, first, second, images, draws=40, seed=3)
    assert fast.keys() <= slow.keys()
    for name, value in fast.items():
        assert value.draws == 40
        found = (value.estimate, value.low, value.high, value.p)
        assert found == pytest.approx(slow[name], abs=1e-12), name


def test_equal_methods_do_not_differ_and_a_seed_repeats():
    tally = tallies.pope_tally(bootstrap_pope_answers(0.7))
    same = paired([tally], [tally], POPE_IMAGES, draws=50)["f1_mean"]
    assert (same.estimate, same.low, same.high, same.p, same.images) == (0, 0, 0, 1, 12)
    other = tallies.pope_tally(bootstrap_pope_answers(0.5, seed=4))
    once, again, another = (
        paired([tally], [other], POPE_IMAGES, draws=50, seed=seed) for seed in (1, 1, 2)
    )
    assert once == again != another


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    """For a mean over images the bootstrap's spread is known: s / sqrt(n)."""
    images = 400
    values = RANDOM.normal(0.1, 1.0, (images, 1))

    def readings(sums):
        return {"mean": sums[..., 0] / images}

    zero = tallies.Tally(np.zeros((images, 1)), readings)
    names = [str(i) for i in range(images)]
    found = paired([tallies.Tally(values, readings)], [zero], names, draws=4000)["mean"]
    error = values.std() / np.sqrt(images)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)
    z = abs(values.mean()) / error
    assert found.p == pytest.approx(2 * (1 - _normal(z)), abs=0.03)


def _normal(z: float) -> float:
    from math import erf, sqrt

    return (1 + erf(z / sqrt(2))) / 2


def test_the_order_of_the_draws_does_not_depend_on_how_many_are_made():
    few = np.concatenate(list(bootstrap.weights(5, 30, seed=7)))
    many = np.concatenate(list(bootstrap.weights(5, 230, seed=7)))
    assert few.shape == (30, 5) and (few == many[:30]).all()
    assert (many.sum(axis=1) == 5).all()


def test_runs_are_paired_and_averaged():
    runs = [tallies.pope_tally(bootstrap_pope_answers(0.8, seed=s)) for s in range(3)]
    other = [tallies.pope_tally(bootstrap_pope_answers(0.6, seed=s + 9)) for s in range(3)]
    found = paired(runs, other, POPE_IMAGES, draws=30)["f1_pooled"]
    each = [a.now()["f1_pooled"] - b.now()["f1_pooled"] for a, b in zip(runs, other, strict=True)]
    assert found.estimate == pytest.approx(np.mean(each))


def test_a_reading_that_is_undefined_has_no_interval():
    answers = mmbench_answers(0.5)[:12]
    tally = tallies.mmbench_tally(answers)
    found = paired([tally], [tally], MMBENCH_IMAGES[:12], draws=10)["accuracy_circular"]
    assert (found.estimate, found.low, found.p, found.draws) == (None, None, None, 0)
    one_task = tallies.mme_tally(mme_answers(0.5)[:2])
    assert np.isnan(one_task.now()["perception"])


def test_inputs_that_do_not_fit_are_refused():
    tally = tallies.pope_tally(bootstrap_pope_answers(0.7))
    with pytest.raises(UserError, match="1 and 2 runs"):
        paired([tally], [tally, tally], POPE_IMAGES)
    with pytest.raises(UserError, match="72 and 71 answers and groups"):
        paired([tally], [tally], POPE_IMAGES[1:])
    with pytest.raises(UserError, match=r"over 1 image"):
        paired([tally], [tally], ["a"] * 72)
