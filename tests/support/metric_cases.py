"""Metric results recorded from official tools, and how ours are compared with them.

A case has `items` (each with the official results), an `aggregate` and `edge_cases`. Strings and
sizes come from the case, so that another folder of the same form passes too.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fusionbench.metrics import (
    anls,
    evalai,
    gqa,
    mmbench,
    mme,
    mmmu,
    pope,
    scienceqa,
    textvqa,
    visual7w,
    vqav2,
    zerobench,
)
from fusionbench.metrics.common import grouped, percent

SHIPPED = Path(__file__).parent.parent / "methods" / "parity"
FOLDER = Path(os.environ.get("FUSIONBENCH_PARITY_DIR", SHIPPED))
TOLERANCE = 1e-9
RAISES = "raises "
"""Start of the text that stands for a result where the official tool stops with an error."""

Facts = Mapping[str, Any]
Replayed = tuple[list[dict[str, Any]], dict[str, Any]]
"""Official results of each item, and the aggregate, by their recorded names."""


def cases(folder: Path = FOLDER) -> dict[str, Facts]:
    """Metric -> recorded case, by the manifest."""
    listed = json.loads((folder / "manifest.json").read_text()).get("metrics", [])
    return {one["id"]: json.loads((folder / one["file"]).read_text()) for one in listed}


def mismatches(metric: str, case: Facts) -> list[str]:
    """What differs, or is missing; empty if all is equal."""
    items, aggregate = REPLAYS[metric](case["items"])
    told = [
        f"{recorded['id']} {recorded['prediction']!r}: {text}"
        for recorded, got in zip(case["items"], items, strict=True)
        for text in differences(recorded["official"], got)
    ]
    return told + [f"aggregate {text}" for text in differences(case["aggregate"], aggregate)]


def rejections(metric: str, case: Facts) -> list[str]:
    """Mismatches of items, aggregate and probes."""
    told = mismatches(metric, case)
    for (of, edge), probe in PROBES.items():
        if of == metric and edge in case["edge_cases"]:
            recorded = case["edge_cases"][edge]
            told += differences(recorded, {given: probe(given) for given in recorded}, edge)
    return told


def differences(recorded: Any, got: Any, at: str = "") -> Iterable[str]:
    """Each place where two JSON values differ; numbers may differ by TOLERANCE."""
    if isinstance(recorded, str) and recorded.startswith(RAISES):
        if not (isinstance(got, float) and math.isfinite(got)):
            yield f"{at}: no value where the official tool {recorded}"
    elif isinstance(recorded, Mapping | list):
        yield from _inside(named(recorded), named(got), at)
    elif not same(recorded, got):
        yield f"{at}: {got!r} instead of {recorded!r}"


def _inside(recorded: Mapping[Any, Any], got: Mapping[Any, Any], at: str) -> Iterable[str]:
    if recorded.keys() != got.keys():
        yield f"{at}: names {recorded.keys() ^ got.keys()}"
    for name in recorded.keys() & got.keys():
        yield from differences(recorded[name], got[name], f"{at}/{name}")


def named(value: Any) -> Mapping[Any, Any]:
    """A list by its indices; a value that is no container is no name."""
    if isinstance(value, Mapping):
        return value
    return dict(enumerate(value)) if isinstance(value, list) else {}


def same(recorded: Any, got: Any) -> bool:
    numbers = isinstance(recorded, int | float) and isinstance(got, int | float)
    return abs(recorded - got) <= TOLERANCE if numbers else recorded == got


def replay_pope(items: Sequence[Facts]) -> Replayed:
    answers = [pope.Answer(**picked(one, "category", "label", "prediction")) for one in items]
    measured = pope.measures(answers)
    names = ("accuracy", "precision", "recall", "yes_ratio")
    aggregate = {}
    for category, group in grouped((one.category for one in answers), answers).items():
        counts = pope.counts([pope.parse(a.prediction) for a in group], [a.label for a in group])
        aggregate[category] = {
            "n": measured[f"questions/{category}"],
            "TP": counts.tp,
            "FP": counts.fp,
            "TN": counts.tn,
            "FN": counts.fn,
            "f1_score": measured[f"f1/{category}"],
        } | {name: measured[f"{name}/{category}"] for name in names}
    each = [
        {"parsed": pope.parse(one.prediction), "correct": bool(pope.score(one))} for one in answers
    ]
    return each, aggregate


def replay_scienceqa(items: Sequence[Facts]) -> Replayed:
    answers = [
        scienceqa.Answer(
            prediction=one["prediction"],
            choices=one["n_choices"],
            answer=one["answer_index"],
            image=one["multimodal"],
        )
        for one in items
    ]
    each = [
        {
            "parsed": scienceqa.parse(one.prediction),
            "predicted_index": scienceqa.predicted_index(one.prediction, one.choices),
            "correct": bool(scienceqa.score(one)),
            "counted_as_image": one.counted_as_image,
        }
        for one in answers
    ]
    found = scienceqa.measures(answers)
    total, image = found["accuracy"], found["accuracy_img"]
    return each, {
        "total": found["questions"],
        "correct": total * found["questions"],
        "accuracy_percent": 100 * total,
        "accuracy_percent_printed": round(100 * total, 2),
        "img_accuracy_percent_printed": round(100 * image, 2),
        "n_image": found["questions_img"],
        "n_image_correct": image * found["questions_img"],
    }


def replay_textvqa(items: Sequence[Facts]) -> Replayed:
    answers = [
        textvqa.Answer(prediction=one["prediction"], answers=tuple(one["answers"])) for one in items
    ]
    each = [
        {
            "processed_prediction": textvqa.parse(one.prediction),
            "processed_answers": [textvqa.parse(text) for text in one.answers],
            "score": textvqa.score(one),
        }
        for one in answers
    ]
    return each, {"accuracy": textvqa.measures(answers)["accuracy"]}


def replay_vqav2(items: Sequence[Facts]) -> Replayed:
    answers = [
        vqav2.Answer(
            answers=tuple(one["answers"]),
            **picked(one, "prediction", "question_type", "answer_type"),
        )
        for one in items
    ]
    each = [
        {
            "official_raw_percent": percent([vqav2.score_raw(one)]),
            "llava_submission_text": vqav2.submission(one.prediction),
            "official_after_llava_normalisation_percent": percent([vqav2.score(one)]),
            "lmms_eval_score": vqav2.score_lmms_eval(one),
            "lmms_eval_submission": vqav2.light(one.prediction),
        }
        for one in answers
    ]
    return each, {
        "official_raw": by_type(answers, "accuracy_raw"),
        "official_after_llava_normalisation": by_type(answers, "accuracy"),
        "lmms_eval_mean": vqav2.measures(answers)["accuracy_lmms_eval"],
    }


def by_type(answers: Sequence[vqav2.Answer], reading: str) -> dict[str, Any]:
    """A reading over all and by the two types, in percent as the official script prints them.

    A mean may lie half-way between two printed numbers, so it is computed as the script does, and
    compared with our measure.
    """
    found, scores = vqav2.measures(answers), [vqav2.READINGS[reading](one) for one in answers]
    assert percent(scores) == pytest.approx(100 * found[reading], abs=0.006)
    named = {"overall": percent(scores)}
    for kind, name in (("question_type", "perQuestionType"), ("answer_type", "perAnswerType")):
        groups = grouped((getattr(one, kind) for one in answers), scores)
        named[name] = {each: percent(group) for each, group in groups.items()}
        ours = part(found, f"{reading}/{kind}", lambda share: 100 * share)
        assert named[name] == pytest.approx(ours, abs=0.006)
    return named


def part(found: Mapping[str, Any], start: str, form: Callable[[Any], Any]) -> dict[str, Any]:
    """Measures `start/name` by name."""
    rest = len(start) + 1
    return {name[rest:]: form(x) for name, x in found.items() if name.startswith(f"{start}/")}


def replay_anls(items: Sequence[Facts]) -> Replayed:
    answers = [
        anls.Answer(answers=tuple(one["answers"]), **picked(one, "prediction", "answer_type"))
        for one in items
    ]
    official = {"m4c_accuracy": "m4c_stvqa_accuracy"}
    each = [
        {official.get(name, name): rule(one) for name, rule in anls.READINGS.items()}
        for one in answers
    ]
    found = anls.measures(answers)
    return each, picked(found, "anls", "accuracy") | {"n": found["questions"]}


def replay_mme(items: Sequence[Facts]) -> Replayed:
    answers = [mme.Answer(**picked(one, "task", "image", "label", "prediction")) for one in items]
    each = [
        {"parsed": mme.parse(one.prediction), "correct": bool(mme.score(one))} for one in answers
    ]
    found = mme.measures(answers)
    names = ("score", "acc", "acc_plus", "other")
    return each, {
        "perception_total": found["perception"],
        "cognition_total": found["cognition"],
        "per_task": {
            task: {name: found[f"{name}/{task}"] for name in names}
            for task in {one.task for one in answers}
        },
    }


def replay_mmbench(items: Sequence[Facts]) -> Replayed:
    answers = [
        mmbench.Answer(
            options=tuple(one["options"]),
            **picked(one, "index", "answer", "prediction", "category"),
        )
        for one in items
    ]
    each = []
    for one in answers:
        given = one.prediction, one.options
        each.append(
            {
                "lmms_eval_option": mmbench.lmms_eval_option(one.prediction) or False,
                "lmms_eval_text": mmbench.lmms_eval_text(*given) or False,
                "lmms_eval_can_infer": mmbench.lmms_eval(*given) or False,
                "lmms_eval_static_fallback": mmbench.lmms_eval_fallback(*given) or "",
                "vlmevalkit_can_infer_option": mmbench.vlmevalkit_option(*given) or False,
                "vlmevalkit_can_infer_text": mmbench.vlmevalkit_text(*given) or False,
                "vlmevalkit_can_infer": mmbench.vlmevalkit(*given) or False,
                "vlmevalkit_hit": bool(mmbench.score(one)),
            }
        )
    found = mmbench.measures(answers)
    hits = mmbench.circular(answers, [mmbench.score(one) for one in answers])
    return each, {
        "lmms_eval_static": {
            "overall": found["lmms_eval_static"],
            "by_category": part(found, "lmms_eval_static", float),
        },
        "vlmevalkit_vanilla_hit_rate": found["accuracy_rows"],
        "vlmevalkit_circular_all_rotations_hit": sum(hits.values()) / len(hits)
        if found["accuracy_circular"] is None
        else found["accuracy_circular"],
    }


def replay_mmmu(items: Sequence[Facts]) -> Replayed:
    answers = [
        mmmu.Answer(
            options=tuple(one["options"]),
            answer=one["answer"] if isinstance(one["answer"], str) else tuple(one["answer"]),
            **picked(one, "question_type", "prediction", "category"),
        )
        for one in items
    ]
    each = []
    for one, got in zip(answers, mmmu.outcomes(answers), strict=True):
        choice = {"random_fallback": got.random_fallback} if one.choice else {}
        each.append({"parsed": got.parsed, "correct": got.correct} | choice)
    found = mmmu.measures(answers)
    sizes = grouped((one.category for one in answers), answers)
    by_category = {
        name: {"acc": found[f"accuracy/{name}"], "num_example": len(group)}
        for name, group in sizes.items()
    }
    # As the authors compute it: a share half-way between two printed numbers may go either way.
    weighted = sum(one["acc"] * one["num_example"] for one in by_category.values()) / len(answers)
    return each, {
        "by_category": by_category,
        "overall_accuracy": found["accuracy"],
        "overall_rounded": round(weighted, 3),
    }


def replay_gqa(items: Sequence[Facts]) -> Replayed:
    answers = [gqa.Answer(**picked(one, "prediction", "answer", "structural")) for one in items]
    each = [
        {
            "converted": gqa.parse(one.prediction),
            "score": gqa.score(one),
            "lmms_eval_exact_match": gqa.score_lmms_eval(one),
            "lmms_eval_exact_match_after_strip": gqa.score_lmms_eval(one, strip=True),
        }
        for one in answers
    ]
    found = gqa.measures(answers)
    numbers = part(found, "questions", int)
    return each, {
        "accuracy": 100 * found["accuracy"],
        "open": 100 * found["accuracy_open"],
        "binary": 100 * found["accuracy_binary"],
        "per_structural_type": {
            name: [100 * share, numbers[name]]
            for name, share in part(found, "accuracy", float).items()
        },
        "lmms_eval_mean": found["lmms_eval"],
    }


def replay_visual7w(items: Sequence[Facts]) -> Replayed:
    answers = [
        visual7w.Answer(
            choices=tuple(one["choices"]),
            answer=one["answer_index"],
            **picked(one, "prediction", "type"),
        )
        for one in items
    ]
    each = []
    for one in answers:
        used = visual7w.used_index(one.prediction)
        each.append(
            {
                "parsed_index": visual7w.parse(one.prediction),
                "used_index": used,
                "used_text": one.choices[used],
                "correct": bool(visual7w.score(one)),
            }
        )
    found = visual7w.measures(answers)
    numbers = part(found, "questions", int)
    return each, {
        "overall_printed": round(found["accuracy"], 3),
        "accuracy": found["accuracy"],
        "correct": found["accuracy"] * found["questions"],
        "total": found["questions"],
        "by_type": {
            name: {
                "correct": share * numbers[name],
                "total": numbers[name],
                "printed": round(share, 3),
            }
            for name, share in part(found, "accuracy", float).items()
        },
    }


def replay_zerobench(items: Sequence[Facts]) -> Replayed:
    answers = [zerobench.Answer(**picked(one, "prediction", "answer")) for one in items]
    official = {
        "benchmark_readme": "benchmark_readme_correct",
        "lmms_eval": "lmms_eval_exact_match",
    }
    each = []
    for one in answers:
        got: dict[str, Any] = {
            official.get(name, name): accepts(one.prediction, one.answer)
            for name, accepts in zerobench.READINGS.items()
        }
        got["extracted"] = zerobench.parse(one.prediction)
        got["benchmark_readme_extracted"] = zerobench.parse_readme(one.prediction)
        each.append(got)
    found = zerobench.measures(answers)
    shares = {official.get(name, name): 100 * found[name] for name in zerobench.READINGS}
    # The aggregate holds lmms-eval's share in percent as well.
    return each, {"n": found["questions"]} | shares


def picked(one: Facts, *names: str) -> dict[str, Any]:
    return {name: one[name] for name in names}


REPLAYS: dict[str, Callable[[Sequence[Facts]], Replayed]] = {
    "pope": replay_pope,
    "scienceqa": replay_scienceqa,
    "textvqa": replay_textvqa,
    "vqav2": replay_vqav2,
    "anls_docvqa": replay_anls,
    "mme": replay_mme,
    "mmbench": replay_mmbench,
    "mmmu": replay_mmmu,
    "gqa": replay_gqa,
    "visual7w": replay_visual7w,
    "zerobench": replay_zerobench,
}

PROBES: dict[tuple[str, str], Callable[[str], Any]] = {
    ("textvqa", "contraction_probe"): lambda text: evalai.normalise(text),
    ("textvqa", "processor_probe"): lambda text: evalai.normalise(text),
    ("vqav2", "digit_article_contraction_probe"): lambda text: evalai.words(text),
    ("vqav2", "punctuation_probe"): lambda text: evalai.punctuation(text),
    ("anls_docvqa", "editdistance"): lambda pair: anls.distance(*pair.split("|")),
}
"""Edge cases that map an input to the official result; functions are looked up when called."""
