"""GQA: exact match after LLaVA's light conversion, and lmms-eval's exact match.

Sources: LLaVA, `scripts/convert_gqa_for_eval.py` at c121f04; the authors' `eval.py`; lmms-eval,
`api/metrics.py` at 75571cf.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.metrics.common import Measures, answered, grouped, mean

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OPEN = "query"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, the true answer, and the structural type of the question."""

    prediction: str
    answer: str
    structural: str

    @property
    def kind(self) -> str:
        """`open` for the structural type `query`, else `binary`."""
        return "open" if self.structural == _OPEN else "binary"


def parse(prediction: str) -> str:
    """Lower case without dots at the end. Blanks and other punctuation stay."""
    return prediction.rstrip(".").lower()


def score(answer: Answer) -> float:
    """1 if the converted prediction equals the true answer as it is written, else 0."""
    return float(parse(answer.prediction) == answer.answer)


def parse_lmms_eval(text: str) -> str:
    """Lower case without ASCII punctuation, as numpy computes it.

    Its fixed-width strings cut what grows in lower case: "İ" is two code points there.
    """
    return text.lower()[: len(text)].translate(_PUNCTUATION)


def score_lmms_eval(answer: Answer, *, strip: bool = False) -> float:
    """1 if prediction and true answer agree in `parse_lmms_eval`; `strip` strips the prediction."""
    prediction = answer.prediction.strip() if strip else answer.prediction
    return float(parse_lmms_eval(prediction) == parse_lmms_eval(answer.answer))


def measures(answers: Sequence[Answer]) -> Measures:
    """Accuracy over all, open and binary questions and structural types, and lmms-eval's two.

    Raises UserError for no answers.
    """
    scores = [score(one) for one in answered(answers)]
    kinds = grouped((one.kind for one in answers), scores)
    found: Measures = {
        "accuracy": mean(scores),
        "accuracy_open": mean(kinds.get("open", [])),
        "accuracy_binary": mean(kinds.get("binary", [])),
        "lmms_eval": mean(map(score_lmms_eval, answers)),
        "lmms_eval_stripped": mean(score_lmms_eval(one, strip=True) for one in answers),
        "questions": len(answers),
    }
    for name, group in grouped((one.structural for one in answers), scores).items():
        found |= {f"accuracy/{name}": mean(group), f"questions/{name}": len(group)}
    return found
