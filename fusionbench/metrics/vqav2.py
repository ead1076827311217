"""VQAv2: soft accuracy over ten references, in three pipelines that differ in the normalisation.

Sources: the authors' `vqaEval.py` (GT-Vision-Lab/VQA at a013f00); LLaVA,
`scripts/convert_vqav2_for_submission.py` at c121f04, whose text the authors' script then scores;
lmms-eval, `tasks/vqav2/utils.py` at 75571cf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionbench.metrics import evalai
from fusionbench.metrics.common import Measures, answered, mean, means


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, its ten reference answers, and the types of question and answer."""

    prediction: str
    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""


def light(text: str) -> str:
    """The two later steps of the normalisation, on one line: no initial lower case or commas."""
    return evalai.words(evalai.punctuation(evalai.one_line(text)))


def submission(prediction: str) -> str:
    """The text LLaVA hands to the server: the full normalisation."""
    return evalai.normalise(prediction)


def score_raw(answer: Answer) -> float:
    """The authors' script on the prediction as it is, 0 to 1.

    It normalises only if the ten references differ: "Red" against ten times "red" is wrong.
    Raises UserError if there are not ten references.
    """
    references = [evalai.one_line(text) for text in evalai.ten(answer.answers)]
    step = light if len(set(references)) > 1 else evalai.one_line
    return evalai.soft_accuracy(step(answer.prediction), [step(text) for text in references])


def score(answer: Answer) -> float:
    """The authors' script on LLaVA's submission, 0 to 1: the pipeline of published numbers."""
    return score_raw(
        Answer(prediction=submission(answer.prediction), answers=answer.answers),
    )


def score_lmms_eval(answer: Answer) -> float:
    """lmms-eval: normalises always, 0 to 1. Raises UserError if there are not ten references."""
    references = [light(text) for text in evalai.ten(answer.answers)]
    return evalai.soft_accuracy(light(answer.prediction), references)


READINGS: dict[str, Callable[[Answer], float]] = {
    "accuracy": score,
    "accuracy_raw": score_raw,
    "accuracy_lmms_eval": score_lmms_eval,
}


def measures(answers: Sequence[Answer]) -> Measures:
    """Three readings over all and by `answer_type` and `question_type` where these are given.

    `accuracy` is LLaVA's pipeline, `accuracy_raw` the authors' script alone. Raises UserError for
    no answers.
    """
    found: Measures = {"questions": len(answered(answers))}
    for reading, rule in READINGS.items():
        scores = [rule(one) for one in answers]
        found[reading] = mean(scores)
        for kind in ("answer_type", "question_type"):
            names = [getattr(one, kind) for one in answers]
            found |= means(f"{reading}/{kind}", names, scores)
    return found
