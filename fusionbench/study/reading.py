"""Studies from YAML files, flags and stored JSON: each value is checked against its field."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.records.cell import READERS, Budget
from fusionbench.records.yaml_files import YamlMapping, read_section
from fusionbench.registry.selection import inline, split_assignment, split_names
from fusionbench.study.contrasts import check_margins, read_contrasts
from fusionbench.study.study import OWN, PRESETS, PROBE, QUICK, TRACKS, VLM, Study, preset

T = TypeVar("T", Study, Budget)

_CHOICES = {
    "track": TRACKS,
    "resample": ("bootstrap", "distinct", "none"),
    "precision": ("fp32", "bf16"),
    "feature_dtype": ("float32", "float16"),
    "optimiser": ("adamw", "muon"),
    "positions": ("grid", "none"),
    "random_layer": ("fixed", "seed"),
    "reader": READERS,
}
TRAINING_KEYS = (
    "query", "mean", "pixels", "projector", "trained", "template", "length", "grouped", "stages",
)  # fmt: skip
"""Keys of `training`."""
STAGE_NUMBERS: Mapping[str, type] = {
    "steps": int, "batch": int, "lr": float, "weight_decay": float, "warmup": float,
}  # fmt: skip
STAGE_KEYS = ("name", "mixture", "template", "trained", *STAGE_NUMBERS)
"""Keys of each of its stages."""
_PROBE_ONLY = (
    "reader", "reader_width", "positions", "random_layer", "resample", "draw", "seeds_per_pass",
)  # fmt: skip
_VLM_ONLY = ("trial_steps",)
_POSITIVE = {
    "seeds", "steps", "batch", "tuning_seeds", "reader_width", "query_dim", "seeds_per_pass",
}  # fmt: skip
_ABOVE_ZERO = {
    "lr": "leave it out for the budget's",
    "lrs": "for example lrs: [0.003]",
    "clip": "for example clip: 1000, which no gradient reaches",
}
_KINDS = {int: "an integer", float: "a number", str: "text", Mapping: "keys and values"}
_FOR_EXAMPLE = {int: "3", float: "0.003", str: "text", Mapping: "{reduction: 2}"}
_EXAMPLES = {
    "encoder": "nano",
    "budget": "{steps: 60}",
    "name": "my-study",
    "note": "what the study is for",
    "baseline": "penultimate",
    "language": "words",
    "model": "llava:FOLDER",
    "settings": "{mema: {reduction: 2}}",
    "margins": "{suite: 1.0, task: 2.0}",
    "training": "{pixels: squash}",
    "methods": "[all]",
    "tasks": "[digits]",
    "mixture": "[digits]",
    **{name: choices[0] for name, choices in _CHOICES.items()},
}
"""Value of a field in a hint; of any other, one of its type."""


def load_study(path: str | Path) -> Study:
    """Read a study file. Raises UserError for what is not a study."""
    hint = "`run` takes a YAML file, which may start with `preset: quick`, or --preset"
    values = read_section(path, "study", hint=hint)
    values.check_keys([*(one.name for one in fields(Study)), "preset"])
    track = values.pop("track", PROBE)
    _check(f"{values.at('track')}: track", "track", track)
    name = values.pop("preset", QUICK.name)
    check_choice(f"{values.at('preset')}: preset", name, tuple(PRESETS[track]))
    start = preset(name, track)
    given = values.pop("budget", YamlMapping())
    budget: YamlMapping = _one(f"{values.at('budget')}: budget", given, Mapping)
    budget.check_keys([one.name for one in fields(Budget)])
    if isinstance(training := values.get("training"), YamlMapping):
        training.check_keys(TRAINING_KEYS)
    # A preset's contrasts belong to its own methods: a file declares its own, or none.
    own: dict[str, Any] = {"name": Path(path).stem, "contrasts": []}
    # A checkpoint brings its own language model, whatever the preset's is.
    if "model" in values:
        own |= {"methods": [OWN], "language": ""}
    study = _changed(start, own | values, lambda key: f"{values.at(key)}: ")
    read_contrasts(study.contrasts, study.baseline, f"{values.at('contrasts')}: ")
    check_margins(study.margins, f"{values.at('margins')}: ")
    changed = _changed(study.budget, budget, lambda key: f"{budget.at(key)}: budget.")
    study = replace(study, budget=changed)
    return checked_track(study, lambda key: f"{values.at(key)}: ")


def with_overrides(  # noqa: PLR0913  (one argument for each flag)
    study: Study,
    *,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    encoder: str = "",
    seeds: int | None = None,
    settings: Sequence[str] = (),
    language: str = "",
    model: str = "",
    mixture: Sequence[str] = (),
) -> Study:
    """The study with the values of the flags; settings are added to its own."""
    merged: dict[str, dict[str, Any]] = {k: dict(v) for k, v in study.settings.items()}
    for text in settings:
        name, key, value = split_assignment(text)
        merged.setdefault(name, {})[key] = value
    changes: dict[str, Any] = {"settings": merged}
    if model and study == PRESETS[study.track].get(study.name):
        changes["methods"] = [OWN]
    changes |= {"methods": list(methods)} if methods else {}
    changes |= {"tasks": list(tasks)} if tasks else {}
    changes |= {"encoder": encoder} if encoder else {}
    changes |= {} if seeds is None else {"seeds": seeds}
    # A checkpoint brings its own language model.
    changes |= {"language": language} if language or model else {}
    changes |= {"model": model} if model else {}
    changes |= {"mixture": list(mixture)} if mixture else {}
    return checked_track(_changed(study, changes, lambda _: ""))


def from_plain(values: Mapping[str, Any]) -> Study:
    """The study of `as_plain`. Raises UserError for values that are no study."""
    try:
        kept = {one.name: values[one.name] for one in fields(Study) if one.name in values}
        stored = kept.pop("budget")
        # Earlier files lack fields that came later, with the defaults that they had.
        budget = Budget(**{name: stored[name] for name in ("steps", "batch", "lrs")})
        stored = without_zeros(stored, kept.get("training"))
        budget = _changed(budget, stored, lambda _: "study: budget.")
        return _changed(Study(name=kept["name"], budget=budget), kept, lambda _: "study: ")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not a study: {error!r}", "name the study file instead") from error


def without_zeros(budget: Mapping[str, Any], training: Any) -> dict[str, Any]:
    """The budget of a study as a file has it.

    A study that trains nothing has 0 steps once it is resolved, which no file may ask for.
    """
    nothing = isinstance(training, Mapping) and training.get("trained") == []
    dropped = {*_POSITIVE, *_ABOVE_ZERO} if nothing else ()
    return {k: v for k, v in budget.items() if k not in dropped or v not in (0, [0])}


def checked_track(study: Study, place: Callable[[str], str] = lambda _: "") -> Study:
    """The study. Raises UserError for fields that do not fit its track or each other.

    `place` of a key is put before it in errors.
    """
    budget, where = study.budget, f"{place('budget')}budget."
    unused = _PROBE_ONLY if study.track == VLM else _VLM_ONLY
    usual = PRESETS[study.track][QUICK.name].budget
    for name in unused:
        if (value := getattr(budget, name)) != getattr(usual, name):
            what = f"{where}{name} is {value}: the track {study.track} does not use it"
            raise UserError(what, f"leave {name} out")
    if budget.resample == "distinct" and not budget.draw:
        raise UserError(
            f"{where}draw is 0: with `resample: distinct` each seed draws that many examples",
            "for example draw: 768, or resample: none for all of them",
        )
    if study.track == PROBE:
        for name in ("language", "model", "mixture", "training"):
            if getattr(study, name):
                what = f"{place(name)}{name} belongs to the track {VLM}"
                raise UserError(what, f"add --track {VLM}")
    return study


def _changed(start: T, values: Mapping[str, Any], place: Callable[[str], str]) -> T:
    """`start` with `values`, each checked against its field's type; `place` is put before a key."""
    hints = get_type_hints(type(start))
    changes = {key: _field(place(key) + key, value, hints[key]) for key, value in values.items()}
    for key, value in changes.items():
        _check(place(key) + key, key, value)
    if "training" in changes:
        changes["training"] = checked_training(f"{place('training')}training", changes["training"])
    return replace(start, **changes)


def checked_training(what: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`training` of a study, its numbers in their types. Raises UserError for what is none.

    What depends on the language model is checked by `training_of`.
    """
    found = dict(given)
    if "length" in given:
        found["length"] = _number(f"{what}.length", given["length"], int)
    if "trained" in given:
        found["trained"] = list_of_names(f"{what}.trained", given["trained"])
    if "stages" in given:
        stages = given["stages"]
        if not isinstance(stages, list | tuple) or not all(isinstance(s, Mapping) for s in stages):
            raise UserError(
                f"{what}.stages must be a list of stages with keys and values, got {stages!r}",
                "for example stages: [{steps: 100, trained: [projector]}, {steps: 300}]",
            )
        found["stages"] = [_stage(f"{what}.stages[{at}]", one) for at, one in enumerate(stages)]
    return found


def _stage(what: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, YamlMapping):
        given.check_keys(STAGE_KEYS)
    found = dict(given)
    for key in ("trained", "mixture"):
        if key in given:
            found[key] = list_of_names(f"{what}.{key}", given[key])
    for key, kind in STAGE_NUMBERS.items():
        if key in given:
            found[key] = _number(f"{what}.{key}", given[key], kind)
    return found


def _number(what: str, value: object, kind: type) -> Any:
    """A number of a training. An integer in place of a float stays one: it is part of ids."""
    number = value if kind is float and type(value) is int else _one(what, value, kind)
    _check(what, what.rpartition(".")[2], number)
    return number


def list_of_names(what: str, value: object) -> list[str]:
    """The names of a list, or one name alone. Raises UserError for anything else."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise UserError(f"{what} must be a list of names, got {value!r}", "for example [fusion]")
    return list(names)


def _field(what: str, value: object, hint: Any) -> Any:
    """`value` in the annotated type of its field."""
    if hint == tuple[str, ...]:
        return _names(what, value)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_field(f"{what}[{i}]", item, inner[0]) for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        mapping = _one(what, value, Mapping)
        kind = inner[1]
        plain = kind is Any or get_origin(kind) not in (None, *_KINDS)
        return {str(k): v if plain else _field(f"{what}.{k}", v, kind) for k, v in mapping.items()}
    if hint is bool and not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, got {value!r}", "for example true")
    # A setting may have any type: its method's defaults decide later.
    return _one(what, value, hint) if hint in _KINDS else value


def _one(what: str, value: object, kind: Any) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML reads 3e-3 as text: it wants a point.
        with suppress(ValueError, OverflowError):
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what} must be a finite number, got {value}", "0 means all, or none")
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise UserError(f"{what} must be {_KINDS[kind]}, got {value!r}", _example(what, kind))


def _example(what: str, kind: Any) -> str:
    """`for example steps: 3`, of the field that `FILE.yaml: budget.steps` names."""
    name = what.rpartition(": ")[2].rpartition(".")[2].partition("[")[0]
    return f"for example {name}: {_EXAMPLES.get(name, _FOR_EXAMPLE[kind])}"


def check_choice(what: str, value: object, allowed: Sequence[str]) -> None:
    """Raise UserError for a value that is not allowed; `what` names it."""
    if value not in allowed:
        near = did_you_mean(str(value), allowed)
        got = f"{what} must be {' or '.join(allowed)}, got {value!r}{near}"
        raise UserError(got, f"known: {', '.join(allowed)}")


def _check(what: str, key: str, value: object) -> None:
    if key in _CHOICES:
        check_choice(what, value, _CHOICES[key])
    if key in _POSITIVE and isinstance(value, int) and value < 1:
        raise UserError(f"{what} must be at least 1, got {value}", f"for example {key}: 3")
    most = 10_000 if key in ("seeds", "tuning_seeds") else 1_000_000_000
    if type(value) is int and value > most:
        raise UserError(f"{what} must be at most {most:,}, got {value:,}", f"for example {key}: 10")
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, int | float) and number < 0 for number in numbers):
        hint = _ABOVE_ZERO.get(key, "0 means all, or none")
        raise UserError(f"{what} must not be negative, got {value}", hint)
    if key in _ABOVE_ZERO and 0 in numbers:
        # Nothing would be trained.
        raise UserError(f"{what} must be above 0, got {value}", _ABOVE_ZERO[key])
    if key in ("methods", "tasks", "lrs") and not value:
        raise UserError(f"{what} is empty", "name at least one")


def _names(what: str, value: object) -> tuple[str, ...]:
    """`all`, a list of names, or `{layer: {index: 4}}` in place of `layer[index=4]`."""
    found: list[str] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str):
            found.extend(split_names(item))
        elif isinstance(item, Mapping):
            found.extend(
                inline(str(name), _one(what, settings, Mapping)) for name, settings in item.items()
            )
        else:
            raise UserError(f"{what} must hold names, got {item!r}", _example(what, str))
    return tuple(found)
