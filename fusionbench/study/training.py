"""The training of a study of the track `vlm`: its stages, from the study's fields. No torch.

One training serves every task of its seed, so it is decided by the study alone and never by the
tasks that are evaluated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.cell import QUESTION, READER, Setting
from fusionbench.records.training import (
    MEANS,
    PIXELS,
    PROJECTORS,
    QUERIES,
    TEMPLATES,
    TRAINED,
    Stage,
    Training,
)
from fusionbench.registry.selection import Chosen, label
from fusionbench.study.mixture import MixtureCard, PartCard
from fusionbench.study.study import Study

BLIND = "blind"
"""The method without an image; every study of the track has it."""
_WORDS = "words"
_NUMBERS = ("steps", "batch", "lr", "weight_decay", "warmup")
_STAGE = ("name", "mixture", "template", "trained", *_NUMBERS)
_KEYS = ("query", "mean", "pixels", "projector", "trained", "template", "length", "stages")
_CHOICES = {
    "query": QUERIES, "mean": MEANS, "pixels": PIXELS, "projector": PROJECTORS,
    "template": TEMPLATES,
}  # fmt: skip

Describe = Callable[[Sequence[str]], MixtureCard]
"""Gives the rows of a mixture, from the names of its parts."""


def defaults_of(language: str) -> dict[str, Any]:
    """What a training with this language model has where its study says nothing."""
    if language == _WORDS:
        return {"template": "words", "trained": ["fusion", "projector", "language"]}
    if language.startswith("llava:"):
        return {
            "template": "llava15", "trained": ["fusion", "projector"],
            "pixels": "pad", "projector": "plain",
        }  # fmt: skip
    return {"template": "chat", "trained": ["fusion", "projector"]}


def training_of(study: Study, language: str, weights: str, describe: Describe) -> Training:
    """The training of a study. Raises UserError for a field that is unknown or impossible."""
    given = {**defaults_of(language), **study.training}
    _check_keys("training", given, _KEYS)
    for key, allowed in _CHOICES.items():
        _check_choice(f"training.{key}", given.get(key), allowed)
    stages = given.pop("stages", None) or [{}]
    template, trained = given.pop("template"), given.pop("trained")
    own = [{"template": template, "trained": trained, **stage} for stage in stages]
    return Training(
        language=language,
        language_weights=weights,
        stages=tuple(_stage(at, one, study, describe) for at, one in enumerate(own)),
        **given,
    )


def _stage(at: int, given: Mapping[str, Any], study: Study, describe: Describe) -> Stage:
    what = f"training.stages[{at}]"
    _check_keys(what, given, _STAGE)
    _check_choice(f"{what}.template", given["template"], TEMPLATES)
    trained = _names(f"{what}.trained", given["trained"])
    for one in trained:
        _check_choice(f"{what}.trained", one, TRAINED)
    names = _names(f"{what}.mixture", given.get("mixture") or study.mixture)
    if not names:
        raise UserError(
            f"{what} has no mixture: what is the model trained on?",
            "name tasks or a conversation file with --mixture",
        )
    card = describe(names)
    numbers = {key: given[key] for key in _NUMBERS if key in given}
    return Stage(
        parts=tuple(_shown(part) for part in card.parts),
        rows=card.hash,
        count=card.rows,
        sizes=tuple(part.rows for part in card.parts),
        template=given["template"],
        trained=trained,
        **numbers,
    )


def _shown(part: PartCard) -> str:
    return part.name if part.share == 1 else f"{part.name}[share={part.share:g}]"


def without_readers(methods: Sequence[Chosen]) -> tuple[tuple[Chosen, ...], Mapping[str, str]]:
    """The methods without their readers, and for each name that was left out the one that is kept.

    The reader of the track is its language model: names that differ in the reader alone are one.
    """
    kept: dict[object, Chosen] = {}
    dropped: dict[str, str] = {}
    for one in sorted(methods, key=lambda each: bool(each.settings.get(READER))):
        plain = _plain(one)
        key = (one.card.module, one.card.cls, one.card.version, one.card.tries,
               tuple(sorted(plain.settings.items())))  # fmt: skip
        first = kept.setdefault(key, plain)
        if first is not plain:
            dropped[one.label] = first.label
    order = {one.label: place for place, one in enumerate(methods)}
    found = sorted(kept.values(), key=lambda one: order.get(one.label, len(order)))
    return tuple(found), dropped


def _plain(one: Chosen) -> Chosen:
    settings = {key: value for key, value in one.settings.items() if key != READER}
    own: dict[str, Setting] = {**one.card.settings}
    if QUESTION in settings:
        own[QUESTION] = one.card.question
    return replace(one, settings=settings, label=label(one.card.name, own, settings))


def _check_keys(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown(f"key of {what}", key, known)


def _check_choice(what: str, value: object, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise unknown(what, str(value), allowed)


def _names(what: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise UserError(f"{what} must be a list of names, got {value!r}", "for example [fusion]")
    return tuple(names)
