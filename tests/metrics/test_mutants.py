"""The recorded cases of each metric reject an implementation that lacks one of its rules."""

import functools
import random
import re
from collections.abc import Callable
from types import ModuleType

import pytest
from metric_cases import REPLAYS, SHIPPED, cases, rejections

from fusionbench.metrics import (
    anls,
    evalai,
    gqa,
    mmbench,
    mme,
    mmmu,
    pope,
    scienceqa,
    visual7w,
    vqav2,
    zerobench,
)

CASES = cases(SHIPPED)
Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


def put(module: ModuleType, name: str, value: object) -> Mutant:
    """Another value in place of a constant or function."""
    return lambda patch: patch.setattr(module, name, value)


def given(module: ModuleType, name: str, change: Callable[[str], str]) -> Mutant:
    """A function of a text, and maybe more, that sees the changed text."""
    right = getattr(module, name)
    return put(module, name, lambda text, *more: right(change(text), *more))


def then(module: ModuleType, name: str, change: Callable) -> Mutant:
    """A function whose result is changed."""
    right = getattr(module, name)
    return put(module, name, lambda *given, **named: change(right(*given, **named)))


def unruled(name: str) -> Mutant:
    """A mode of ZeroBench without the rule for an empty true answer."""
    return lambda patch: patch.setitem(
        zerobench.READINGS, name, getattr(zerobench, name).__wrapped__
    )


def always_normalised(answer):
    references = [vqav2.light(text) for text in answer.answers]
    return evalai.soft_accuracy(vqav2.light(answer.prediction), references)


def never_normalised(answer):
    return evalai.soft_accuracy(answer.prediction, answer.answers)


def all_references_match(prediction, references):
    return min(1.0, sum(one == prediction for one in references) / 3)


def first_mention(text, mentions):
    found = {letter: text.find(mention) for letter, mention in mentions.items() if mention in text}
    return min(found, key=found.get) if found else None


def drawn_for_all(answers, seed=mmmu.SEED):
    """A letter is drawn for every choice, also where it is not needed."""
    draw, found = random.Random(seed), []
    for one in answers:
        if not one.choice:
            found.append(mmmu._opened(one))
            continue
        drawn, letter = draw.choice("ABCD"), mmmu.parse_choice(one.prediction, one.options)
        used = letter or drawn
        right = mmmu.choice_correct(used, one.answer)
        found.append(mmmu.Outcome(used, letter is None, right))
    return found


def whole_numbers(text):
    return [text.strip().lower()] if len(text.strip()) == 1 else RIGHT_NORMALISED(text)


RIGHT_NORMALISED = mmmu.normalised


def same_index(answer):
    return float(visual7w.used_index(answer.prediction) == answer.answer)


POPE = {
    "the whole text": given(pope, "parse", lambda text: text.replace(".", " ")),
    "commas stay": given(pope, "parse", lambda text: text.replace(",", "-")),
    "any case": given(pope, "parse", str.lower),
    "without not": put(pope, "_NEGATIVE", {"No", "no"}),
    "all white space": given(pope, "parse", lambda text: " ".join(text.split())),
    "no is positive": put(
        pope, "_CELLS", (("no", "no"), ("no", "yes"), ("yes", "yes"), ("yes", "no"))
    ),
    "precision and recall exchanged": put(
        pope, "_CELLS", (("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no"))
    ),
}
SCIENCEQA = {
    "stripped": given(scienceqa, "parse", lambda text: (text or "").strip()),
    "any case": given(scienceqa, "parse", lambda text: (text or "").capitalize()),
    "a real dot": put(scienceqa, "_STATED", re.compile(r"The answer is ([A-Z])\.")),
    "letters A to D": put(scienceqa, "_OPTIONS", ("A", "B", "C", "D")),
    "letters that are not offered": put(scienceqa, "letters", lambda count: "ABCDEFGH"),
    "statements do not count": put(scienceqa, "_STATED", re.compile("(?!)")),
    "a missing answer has an image": put(
        scienceqa.Answer, "counted_as_image", property(lambda self: self.image)
    ),
}
EVALAI = {
    "articles stay": put(evalai, "ARTICLES", frozenset()),
    "number words stay": put(evalai, "NUMBERS", {}),
    "contractions stay": put(evalai, "CONTRACTIONS", {}),
    "punctuation stays": put(evalai, "PUNCTUATION", ""),
    "dots stay": put(evalai, "_PERIOD", re.compile("(?!)")),
    "every dot goes": put(evalai, "_PERIOD", re.compile(r"\.")),
    "all references match": put(evalai, "soft_accuracy", all_references_match),
}
TEXTVQA = EVALAI | {
    "more than 32 dots": put(evalai, "_MOST_PERIODS", 0),
    "a number word for none is missing": put(
        evalai, "NUMBERS", {k: v for k, v in evalai.NUMBERS.items() if k != "none"}
    ),
}
VQAV2 = EVALAI | {
    "always normalised": put(vqav2, "score_raw", always_normalised),
    "never normalised": put(vqav2, "score_raw", never_normalised),
    "the submission is the prediction": put(vqav2, "submission", str),
    "lmms-eval normalises fully": put(vqav2, "light", evalai.normalise),
    "a comma between digits is a sign": put(evalai, "_DIGIT_COMMA", re.compile("(?!)")),
}
ANLS = {
    "no threshold": put(anls, "THRESHOLD", 0.0),
    "above one half only": put(anls, "THRESHOLD", 0.5 + 1e-9),
    "none is an answer": put(anls, "_NONE", "\0"),
    "not answerable is no type": put(anls, "NOT_ANSWERABLE", "\0"),
    "NA is no abstention": put(anls, "_ABSTAIN", ("none",)),
    "not stripped": put(
        anls, "_forms", lambda answer, case_sensitive: (answer.prediction, list(answer.answers))
    ),
    "length difference": put(anls, "distance", lambda a, b: abs(len(a) - len(b))),
}
MME = {
    "the whole text": put(mme, "_LOOKED_AT", 1000),
    "three characters": put(mme, "_LOOKED_AT", 3),
    "other is no": then(mme, "parse", lambda said: "no" if said == "other" else said),
    "one right answer is enough": put(
        mme, "both_right", lambda first, second: max(mme.score(first), mme.score(second))
    ),
    "OCR is cognition": put(mme, "PERCEPTION", mme.PERCEPTION[:-1]),
    "images come apart": put(
        mme,
        "pairs",
        lambda group: list(zip(group[: len(group) // 2], group[len(group) // 2 :], strict=True)),
    ),
}
MMBENCH = {
    "a letter anywhere": put(mmbench, "_LAST_WORDS", 1000),
    "no statement": put(mmbench, "_STATED", re.compile("(?!)")),
    "no refusal": put(mmbench, "_REFUSALS", ()),
    "signs stay": put(mmbench, "_SIGNS", {}),
    "bare letters only": put(mmbench, "_AFFIXES", (("", ""),)),
    "no colon in front": put(mmbench, "_AFFIXES", mmbench._AFFIXES[:-5]),
    "texts of any length": put(
        mmbench,
        "vlmevalkit_text",
        lambda said, options: mmbench._one_text(said, mmbench.offered(options)),
    ),
    "no text": put(mmbench, "_one_text", lambda said, options: None),
    "rows are questions": put(mmbench.Answer, "question", property(lambda self: self.index)),
    "no phrase": put(mmbench, "_PHRASES", ()),
    "the start is weak": put(mmbench, "_AT_START", -1),
    "no fallback": put(mmbench, "lmms_eval_fallback", lambda said, options: None),
}
MMMU = {
    "signs stay": put(mmmu, "_EDGE_SIGNS", ""),
    "first mention": put(mmmu, "_latest", first_mention),
    "texts of options in short answers": put(mmmu, "_FEW_WORDS", 0),
    "no texts of options": put(mmmu, "_FEW_WORDS", 1000),
    "another seed": put(mmmu, "outcomes", functools.partial(mmmu.outcomes, seed=43)),
    "a letter is drawn for every question": put(mmmu, "outcomes", drawn_for_all),
    "no indicator": put(mmmu, "_INDICATORS", ()),
    "no number": put(mmmu, "_NUMBERS", ()),
    "no comma": put(mmmu, "_NUMBERS", mmmu._NUMBERS[1:]),
    "one letter is a text": put(mmmu, "normalised", lambda text: whole_numbers(text)),
    "one of several is not enough": put(mmmu, "_several", lambda answer: [str(answer)]),
    "a text must be equal": put(
        mmmu,
        "open_correct",
        lambda parsed, answer: any(
            value in parsed for one in mmmu._several(answer) for value in mmmu.normalised(one)
        ),
    ),
}
GQA = {
    "stripped": given(gqa, "parse", str.strip),
    "case counts": put(gqa, "parse", lambda text: text.rstrip(".")),
    "dots everywhere": given(gqa, "parse", lambda text: text.replace(".", "")),
    "dots stay": put(gqa, "parse", str.lower),
    "punctuation stays": put(gqa, "_PUNCTUATION", {}),
    "lower case may grow": put(
        gqa, "parse_lmms_eval", lambda text: text.lower().translate(gqa._PUNCTUATION)
    ),
    "query is binary": put(gqa, "_OPEN", "choose"),
}
VISUAL7W = {
    "capital letters only": given(
        visual7w, "parse", lambda text: text if text == text.upper() else ""
    ),
    "letters inside words": put(visual7w, "_FORMS", (re.compile("([ABCD])"),)),
    "no statement": put(visual7w, "_FORMS", visual7w._FORMS[:1]),
    "the last option in doubt": put(visual7w, "FALLBACK", 3),
    "case of texts and letters": put(visual7w, "score", same_index),
}
ZEROBENCH = {
    "the first braces": put(
        zerobench, "parse", lambda text: (zerobench._BRACES.findall(text.lower()) or [""])[0]
    ),
    "braces on one line": put(zerobench, "_BRACES", zerobench._BRACES_ON_A_LINE),
    "the README across lines": put(zerobench, "_BRACES_ON_A_LINE", zerobench._BRACES),
    "the README strips": then(zerobench, "parse_readme", str.strip),
    "white space counts": put(zerobench, "collapsed", str.lower),
    "the first line": put(zerobench, "last_line", lambda text: text.split("\n")[0]),
    "case counts": put(zerobench, "collapsed", lambda text: " ".join(text.split())),
    "a dot at the end stays": put(zerobench, "plain", lambda text: text.strip().lower()),
    "official without the empty rule": unruled("mema_official"),
    "contain without the empty rule": unruled("mema_contain"),
}

MUTANTS = {
    "pope": POPE,
    "scienceqa": SCIENCEQA,
    "textvqa": TEXTVQA,
    "vqav2": VQAV2,
    "anls_docvqa": ANLS,
    "mme": MME,
    "mmbench": MMBENCH,
    "mmmu": MMMU,
    "gqa": GQA,
    "visual7w": VISUAL7W,
    "zerobench": ZEROBENCH,
}
ALL = [(metric, rule) for metric, mutants in MUTANTS.items() for rule in mutants]


@pytest.mark.few(31)
@pytest.mark.parametrize(("metric", "rule"), ALL)
def test_a_metric_without_one_rule_is_rejected(metric, rule, monkeypatch):
    MUTANTS[metric][rule](monkeypatch)
    assert rejections(metric, CASES[metric])


def test_every_metric_has_mutants_and_is_accepted_without_them():
    assert MUTANTS.keys() == REPLAYS.keys()
    for metric, case in CASES.items():
        assert not rejections(metric, case)
