"""Rules of the official tools that the recorded cases do not reach, and the readings beside them.

The expected values follow from the sources named in each metric's docstring.
"""

import pytest

from fusionbench.api.errors import UserError
from fusionbench.metrics import (
    anls,
    common,
    gqa,
    mmbench,
    mme,
    mmmu,
    pope,
    scienceqa,
    seed,
    textvqa,
    visual7w,
    vqav2,
    zerobench,
)

FOUR = ("cat", "dog", "cow", "hen")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("  yes", "other"), (" yes", "yes"), ("yno", "no"), ("noyes", "no"), ("yes\n", "yes")],
)
def test_mme_looks_at_the_first_four_characters(text, parsed):
    assert mme.parse(text) == parsed


def mme_answers(task, *given):
    return [
        mme.Answer(task=task, image=f"{i // 2}.jpg", label=label, prediction=text)
        for i, (label, text) in enumerate(given)
    ]


def test_mme_has_no_total_without_all_tasks():
    found = mme.measures(mme_answers("count", ("Yes", "Yes"), ("No", "Yes")))
    assert found["perception"] is None and found["cognition"] is None
    assert found["score/count"] == 50 and found["acc"] == 0.5 and found["acc_plus"] == 0


def test_mme_totals_are_sums_over_their_tasks():
    right = [("Yes", "Yes"), ("No", "No")]
    answers = [
        one for task in (*mme.PERCEPTION, *mme.COGNITION) for one in mme_answers(task, *right)
    ]
    found = mme.measures(answers)
    assert (found["perception"], found["cognition"]) == (2000, 800)


def test_mme_refuses_a_pair_of_different_images_and_an_unknown_label():
    apart = mme_answers("count", ("Yes", "Yes"), ("No", "No"), ("Yes", "Yes"), ("No", "No"))
    with pytest.raises(UserError, match=r"'0.jpg' and '1.jpg' stand side by side"):
        mme.measures([apart[0], apart[2], apart[1], apart[3]])
    with pytest.raises(UserError, match="label 'maybe'"):
        mme.measures(mme_answers("count", ("maybe", "Yes"), ("No", "No")))


def test_mmbench_takes_no_letter_from_a_failed_call():
    failed = "Failed to obtain answer via API ; A"
    assert mmbench.vlmevalkit_option(failed, FOUR) is None
    assert mmbench.lmms_eval_option(failed) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A dog, not (B)", "A"),
        ("not A. but C", "C"),
        ("xA. xB:", "A"),
        ("see (B), not xC.", "B"),
        ("xA) xB ", "A"),
        ("xB: xC)", "B"),
        ("i choose D over xA.", "A"),
        ("i choose D, not xA)", "A"),
        ("(B) or i choose D over", "D"),
        ("  'B'  ", "B"),
        ("Dog", "D"),
        ("dog", None),
        ("", None),
    ],
)
def test_mmbench_fallback_takes_the_strongest_evidence(text, letter):
    assert mmbench.lmms_eval_fallback(text, FOUR) == letter


def test_mmbench_without_rotations_has_no_circular_accuracy():
    row = {"options": FOUR, "answer": "A", "category": "animal"}
    plain = [mmbench.Answer(index=i, prediction=text, **row) for i, text in enumerate("AB")]
    found = mmbench.measures(plain)
    assert found["accuracy_circular"] is None and found["rotations"] == 0
    assert found["accuracy"] == found["accuracy_rows"] == found["accuracy/animal"] == 0.5
    rotated = mmbench.Answer(
        index=mmbench.ROTATION, options=("dog", "cow", "hen", "cat"), answer="D", prediction="A"
    )
    found = mmbench.measures([*plain, rotated])
    assert found["accuracy_circular"] == 0 and found["accuracy"] == 0.5
    assert (found["questions"], found["rows"], found["rotations"]) == (2, 3, 1)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("about 3e5 m", ["about 3e5 m", 300000.0, 5.0]),
        ("x = 4\nso y = 6", ["6.0"]),
        ("a = 4\nb", ["a = 4\nb", 4.0]),
        ("it is .", ["it is"]),
        ("it is ?\nit is 5", [5.0]),
        ("so is ", ["is"]),
        ("1.5, 2", ["1.5, 2", 1.0, 2.0]),
    ],
)
def test_mmmu_reads_the_conclusion_of_each_line(text, parsed):
    expected = [float(value) if value == "6.0" else value for value in parsed]
    assert mmmu.parse_open(text) == expected


def test_mmmu_draws_in_the_order_of_the_answers_and_counts_it():
    def answered(text):
        return mmmu.Answer(
            question_type=mmmu.MULTIPLE_CHOICE, options=FOUR, answer="A", prediction=text
        )

    unread, read = answered("?"), answered("B")
    first = [one.parsed for one in mmmu.outcomes([unread] * 8)]
    mixed = [one.parsed for one in mmmu.outcomes([read, unread] * 8)][1::2]
    assert first == mixed and len(set(first)) > 1
    found = mmmu.measures([answered("A"), *[unread] * 8])
    assert found["random_fallbacks"] == 8 and found["accuracy_parsed"] == 1 / 9
    assert found["accuracy"] == (1 + first.count("A")) / 9
    with pytest.raises(UserError, match="without options"):
        mmmu.outcomes(
            [mmmu.Answer(question_type="multiple-choice", options=(), answer="A", prediction="A")]
        )


@pytest.mark.parametrize(
    ("text", "index"),
    [("Answer: Dog", 3), ("answer\uff1aCow", 2), ("option Bird", 1), ("dog", None), ("[c]", 2)],
)
def test_visual7w_takes_a_letter_behind_answer_or_option(text, index):
    assert visual7w.parse(text) == index


def test_visual7w_counts_a_letter_that_is_not_offered_as_wrong():
    three = visual7w.Answer(prediction="D", choices=("a", "b", "c"), answer=0)
    assert visual7w.score(three) == 0


@pytest.mark.parametrize(
    ("said", "true", "equal"),
    [
        ("11.9", "11.90", True),
        ("1,000.", "1000", True),
        ("'7'", "7", True),
        ("-.5", "-0.5", True),
        ("7 cats", "7", False),
        ("{7}", "7", False),
        ("3, 4", "34", False),
    ],
)
def test_zerobench_lmms_eval_compares_decimal_numbers(said, true, equal):
    assert zerobench.lmms_eval(said, true) is equal


def test_pope_readings_of_lmms_eval():
    given = [
        ("yes", "yes"),
        ("yes.", "yes"),
        ("No", "yes"),
        ("no", "no"),
        ("yes", "no"),
        ("-", "no"),
    ]
    answers = [
        pope.Answer(category="random", label=label, prediction=text) for text, label in given
    ]
    found = pope.measures(answers)
    assert found["lmms_eval_accuracy"] == 2 / 6
    assert found["lmms_eval_precision"] == 1 / 2 and found["lmms_eval_recall"] == 1 / 2
    assert found["lmms_eval_f1"] == 1 / 2 and found["lmms_eval_yes_ratio"] == 1 / 2
    assert found["yes_ratio_pooled"] == 4 / 6


def test_pope_has_every_category_the_mean_and_the_pooled_number():
    given = ["random yes yes", "random no no", "popular yes no", "popular yes yes"]
    given += ["popular no yes", "adversarial yes no"]
    answers = [
        pope.Answer(**dict(zip(("category", "label", "prediction"), line.split(), strict=True)))
        for line in given
    ]
    found = pope.measures(answers)
    assert (found["f1/random"], found["f1/popular"], found["f1/adversarial"]) == (1, 0.5, 0)
    assert found["f1_mean"] == 0.5 and found["f1_pooled"] == 4 / 7
    assert found["accuracy_mean"] == pytest.approx((1 + 1 / 3) / 3)
    assert found["accuracy_pooled"] == 0.5
    assert (found["questions"], found["questions/popular"]) == (6, 3)
    with pytest.raises(UserError, match="label 'maybe'"):
        pope.measures([pope.Answer(category="random", label="maybe", prediction="no")])


def test_scienceqa_has_the_total_and_the_part_with_images():
    def answered(text, image):
        return scienceqa.Answer(prediction=text, choices=2, answer=0, image=image)

    found = scienceqa.measures(
        [answered("A", True), answered("B", True), answered("A", False), answered(None, True)]
    )
    assert found == {
        "accuracy": 0.5,
        "accuracy_img": 0.5,
        "questions": 4,
        "questions_img": 2,
        "unparsed": 1,
    }


@pytest.mark.parametrize(
    ("text", "equal", "first"),
    [
        ("B", 1, 1),
        ("B.", 0, 1),
        (" B. dog", 0, 1),
        ("b", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
        ("A", 0, 0),
    ],
)
def test_seed_readings_of_a_text(text, equal, first):
    assert seed.equal(text, "B") == equal
    assert seed.first_letter(text, "B") == first


def test_seed_has_three_readings_and_counts_the_unanswered_as_wrong():
    answers = [
        seed.Answer(prediction="B", answer="B", type="1", ranked=1),
        seed.Answer(prediction="B.", answer="B", type="1", ranked=0),
        seed.Answer(prediction=None, answer="A", type="2"),
    ]
    assert seed.measures(answers) == {
        "accuracy_equal": 1 / 3,
        "accuracy_first_letter": 2 / 3,
        "accuracy_ranked": 0.5,
        "questions": 3,
        "questions_ranked": 2,
        "unanswered": 1,
        "accuracy_equal/1": 0.5,
        "accuracy_equal/2": 0,
    }
    assert seed.measures(answers[2:])["accuracy_ranked"] is None


def test_anls_refuses_a_question_without_reference():
    with pytest.raises(UserError, match="without a reference"):
        anls.measures([anls.Answer(prediction="a", answers=())])


def test_gqa_without_open_questions_has_no_open_accuracy():
    found = gqa.measures([gqa.Answer(prediction="Yes.", answer="yes", structural="verify")])
    assert found["accuracy_open"] is None and found["accuracy_binary"] == 1


@pytest.mark.parametrize(
    "metric",
    [anls, gqa, mmbench, mme, mmmu, pope, scienceqa, seed, textvqa, visual7w, vqav2, zerobench],
)
def test_no_answers_are_refused(metric):
    with pytest.raises(UserError, match="no answers to measure"):
        metric.measures([])


def test_options_have_the_letters_of_the_alphabet():
    assert common.letters(0) == "" and common.letters(26).endswith("Z")
    with pytest.raises(UserError, match="27 options"):
        common.letters(27)
