"""Every recorded metric case comes out equal: each item, the aggregate and the edge cases."""

import itertools
import json

import pytest
from metric_cases import FOLDER, PROBES, RAISES, REPLAYS, SHIPPED, cases, mismatches

from fusionbench.api.errors import UserError
from fusionbench.metrics import anls, evalai, mme, mmmu, pope, textvqa

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
