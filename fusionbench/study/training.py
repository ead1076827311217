"""The training of a study of the track `vlm`: its stages and its language model. No torch.

`words` has no weights of its own: its vocabulary follows from the rows of the mixture, which the
training names, so that its fingerprint covers its size alone.

One training serves every task of its seed, so it is decided by the study alone and never by the
tasks that are evaluated.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, unknown
from fusionbench.models.encoders.card import EncoderCard, read_json
from fusionbench.models.encoders.snapshots import labelled, weight_files
from fusionbench.models.readers.fetch import MODEL_SHA256, fetch_language, language_folder
from fusionbench.models.readers.llava.description import Description, describe
from fusionbench.models.readers.load import SMOLLM2, WORDS, check_language
from fusionbench.records.cell import (
    MEANS,
    PIXELS,
    PROJECTORS,
    QUERIES,
    QUESTION,
    READER,
    TEMPLATES,
    TRAINED,
    Setting,
    Stage,
    Training,
    canonical,
)
from fusionbench.records.files import file_hash
from fusionbench.registry.selection import Chosen, label
from fusionbench.study.mixture import MixtureCard, PartCard
from fusionbench.study.reading import (
    STAGE_KEYS,
    STAGE_NUMBERS,
    TRAINING_KEYS,
    check_choice,
    checked_training,
)
from fusionbench.study.study import PRESETS, Study

LLAVA = "llava:"
WORDS_SIZE = (4, 96, 4)
"""Layers, width and heads of `words`."""
_WORDS_VERSION = 1
_TEXT_FILES = (
    "config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_SHOWN_FILES = (
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
"""Files of a LLaVA checkpoint that say how it is asked and how it reads images."""


@dataclass(frozen=True, kw_only=True)
class LanguageCard:
    """A language model, or the checkpoint that it is a part of."""

    name: str
    weights: str
    """32 hexadecimal digits over weights, tokenizer and chat template."""
    checkpoint: Description | None = None
    """Of a LLaVA checkpoint: its parts."""
    template: str = ""
    """Of a LLaVA checkpoint: its chat format, or `llava15` where that marks no answer's end."""

    @property
    def tower(self) -> EncoderCard | None:
        """The checkpoint's encoder; None for a language model alone."""
        return None if self.checkpoint is None else self.checkpoint.encoder


def describe_language(language: str, model: str, *, download: bool) -> LanguageCard:
    """The card of a language model, or of a checkpoint `model`, which brings its own.

    Raises UserError for an unknown name, for both or neither, and for files that are not here.
    """
    if bool(language) == bool(model):
        raise UserError(
            "the track vlm needs a language model"
            if not language
            else f"--language {language} and --model {model} exclude each other",
            "name one: --language words, or --model llava:<id or folder>",
        )
    if model:
        return _checkpoint(model, download=download)
    check_language(language)
    if language == WORDS:
        return LanguageCard(name=language, weights=_digest([WORDS, _WORDS_VERSION, *WORDS_SIZE]))
    folder = _folder(language, download=download)
    if language == SMOLLM2:
        # What conversion writes beside the weights depends on the version of transformers.
        return LanguageCard(name=language, weights=_digest([SMOLLM2, MODEL_SHA256]))
    texts = [folder / name for name in _TEXT_FILES]
    try:
        files = [*weight_files(folder), *(file for file in texts if file.is_file())]
    except ValueError as error:
        raise UserError(f"language model {language}: {error}", "give its folder") from error
    weights = _digest([file_hash(file) for file in files])
    label = labelled(language, _kind(folder), weights, folder) if ":" in language else ""
    return LanguageCard(name=label or language, weights=weights)


def checkpoint_folder(name: str) -> Path:
    """The folder of a language model, or of the checkpoint that it is a part of.

    Raises UserError if it is not on this machine.
    """
    if name.startswith(LLAVA):
        found = describe(name)
        folder = None if found is None else found.folder
    else:
        folder = language_folder(name)
    if folder is None:
        raise _not_here(name)
    return folder


def _not_here(name: str) -> UserError:
    how = f"`fusionbench fetch {name}{' --language' if name.startswith('hf:') else ''}`"
    if name.startswith(LLAVA):
        how = "the first run with it fetches it; a folder works too: llava:FOLDER"
    return UserError(f"language model {name!r} is not here", how)


def _checkpoint(name: str, *, download: bool) -> LanguageCard:
    found = describe(name)
    if found is None and download:
        from fusionbench.models.readers.llava.checkpoint import fetch

        fetch(name)
        found = describe(name)
    if found is None:
        raise UserError(f"checkpoint {name} is not here", "give a folder: llava:FOLDER")
    # The tokenizer is a part of transformers, which no other study loads for its plan.
    from fusionbench.models.readers.llava.chat import CheckpointTokenizer, template_for

    tokenizer = CheckpointTokenizer.of_folder(found.folder, name=name)
    return LanguageCard(
        name=found.encoder.label or name,
        weights=_digest([found.weights, found.tokenizer, _hashes(found.folder, _SHOWN_FILES)]),
        checkpoint=found,
        template=template_for(tokenizer, None).name,
    )


def _folder(name: str, *, download: bool) -> Path:
    try:
        found = language_folder(name)
        if found is None and download:
            found = fetch_language(name)
    except OSError as error:
        raise UserError(str(error), "give a folder: hf:FOLDER") from error
    if found is None:
        raise _not_here(name)
    return found


def _hashes(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and hash of those of these files that a folder has."""
    return [(name, file_hash(folder / name)) for name in names if (folder / name).is_file()]


def _kind(folder: Path) -> str:
    """`model_type` of the configuration; `model` where it names none."""
    with suppress(OSError, ValueError):
        return str(read_json(folder / "config.json").get("model_type") or "model")
    return "model"


def _digest(values: object) -> str:
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:32]


BLIND = "blind"
"""The method without an image; every study of the track has it."""
_CHOICES = {
    "query": QUERIES, "mean": MEANS, "pixels": PIXELS, "projector": PROJECTORS,
    "template": TEMPLATES,
}  # fmt: skip

Describe = Callable[[Sequence[str]], MixtureCard]
"""Gives the rows of a mixture, from the names of its parts."""


def defaults_of(language: LanguageCard) -> dict[str, Any]:
    """What a training with this language model has where its study says nothing.

    Of a checkpoint: its own format, its projector as it is, images padded as in the training of
    LLaVA-1.5, or cut into tiles by its processor.
    """
    if language.checkpoint is not None:
        pixels = "processor" if language.checkpoint.tiled else "pad"
        template, trained = language.template, ["fusion"]
        return {"template": template, "pixels": pixels, "trained": trained, "projector": "plain"}
    if language.name == "words":
        return {"template": "words", "trained": ["fusion", "projector", "language"]}
    return {"template": "chat", "trained": ["fusion", "projector"]}


def trains(study: Study, language: LanguageCard) -> bool:
    """Whether any stage of a study trains anything."""
    given = _given(study, language)
    stages = given.get("stages") or [{}]
    return any(stage.get("trained", given["trained"]) for stage in stages)


def _given(study: Study, language: LanguageCard) -> dict[str, Any]:
    return {**defaults_of(language), **checked_training("training", study.training)}


def smoke_of(study: Study) -> Study:
    """The study with the budget and the seeds of `smoke`, every stage with its steps and batch."""
    small = PRESETS[study.track]["smoke"]
    cut = {"steps": small.budget.steps, "batch": small.budget.batch}
    training = dict(study.training)
    if stages := training.get("stages"):
        training["stages"] = [{**stage, **cut} for stage in stages]
    return replace(
        study, budget=small.budget, seeds=small.seeds, references=small.references,
        training=training, note=small.note,
    )  # fmt: skip


def evaluated(study: Study, language: LanguageCard) -> Study:
    """The study; without mixture, steps and learning rates if it trains nothing.

    Raises UserError if it trains nothing and its model is no finished one, and for several learning
    rates without val questions to choose with.
    """
    if trains(study, language):
        return study
    if language.checkpoint is None:
        raise UserError(
            f"the study trains nothing, and {language.name} has no projector for images",
            "name a checkpoint with --model, or what is trained: trained: [fusion, projector]",
        )
    training = {key: value for key, value in study.training.items() if key != "stages"}
    stages = study.training.get("stages") or [{}]
    training |= {key: stages[-1][key] for key in ("template",) if key in stages[-1]}
    # What changes no weight is no part of the identity.
    budget = replace(
        study.budget, steps=0, batch=1, lrs=(0.0,), tuning_seeds=0, trial_steps=0, train_items=0,
        val_items=0, weight_decay=0.0, warmup=0.0, vector_lr=0.0, optimiser="adamw", draw=0,
        resample="none",
    )  # fmt: skip
    return replace(
        study, mixture=(), budget=budget, training={**training, "trained": [], "grouped": False}
    )


def training_of(study: Study, language: LanguageCard, describe: Describe) -> Training:
    """The training of a study. Raises UserError for a field that is unknown or impossible."""
    given = _given(study, language)
    _check_keys("training", given, TRAINING_KEYS)
    _check_grouped(given.get("grouped", False))
    _check_parts(given, language)
    for key, allowed in _CHOICES.items():
        if key in given:
            check_choice(f"training.{key}", given[key], allowed)
    stages = given.pop("stages", None) or [{}]
    nothing = not trains(study, language)
    template, trained = given.pop("template"), given.pop("trained")
    own = [{"template": template, "trained": trained, **stage} for stage in stages]
    _check_rates(own, study)
    if {"language", "lora"} <= {one for stage in own for one in stage["trained"]}:
        raise UserError(
            "training trains both language and lora", "language: all of its weights; lora: adapters"
        )
    return Training(
        language=language.name,
        language_weights=language.weights,
        stages=tuple(
            _stage(at, one, study, _none if nothing else describe) for at, one in enumerate(own)
        ),
        **given,
    )


def _stage(at: int, given: Mapping[str, Any], study: Study, describe: Describe) -> Stage:
    what = f"training.stages[{at}]"
    _check_keys(what, given, STAGE_KEYS)
    check_choice(f"{what}.template", given["template"], TEMPLATES)
    trained = tuple(given["trained"])
    for one in trained:
        check_choice(f"{what}.trained", one, TRAINED)
    names = given.get("mixture") or study.mixture
    if not names and describe is not _none:
        raise UserError(
            f"{what} has no mixture: what is the model trained on?",
            "name tasks or a conversation file with --mixture",
        )
    card = describe(names)
    numbers = {key: given[key] for key in STAGE_NUMBERS if key in given}
    return Stage(
        parts=tuple(_shown(part) for part in card.parts),
        rows=card.hash,
        count=card.rows,
        sizes=tuple(part.rows for part in card.parts),
        template=given["template"],
        trained=trained,
        **numbers,
    )


def _none(names: Sequence[str]) -> MixtureCard:
    """The mixture of a study that trains nothing."""
    return MixtureCard(parts=())


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


def _check_grouped(value: object) -> None:
    if not isinstance(value, bool):
        raise UserError(f"training.grouped must be true or false, got {value!r}", "grouped: true")


def _check_rates(stages: Sequence[Mapping[str, Any]], study: Study) -> None:
    """Raise UserError for learning rates to choose from that no stage would use."""
    trained = [stage for stage in stages if stage["trained"]]
    if trained and len(study.budget.lrs) > 1 and all(stage.get("lr") for stage in trained):
        raise UserError(
            "every stage has a learning rate of its own, so none of budget.lrs would be used",
            "give one rate in lrs, or leave out `lr` of a stage",
        )


def _check_parts(given: Mapping[str, Any], language: LanguageCard) -> None:
    """Raise UserError for pixels or a projector that the language model does not have."""
    found = language.checkpoint
    if found is None:
        if given.get("pixels") == "processor":
            raise UserError(
                f"training.pixels is processor, and {language.name} has no image processor",
                "squash or pad",
            )
        return
    if given["projector"] != "plain":
        raise UserError(
            f"training.projector is {given['projector']}, and the checkpoint's is plain",
            "leave it out",
        )
    allowed = ("processor",) if found.tiled else ("pad", "processor")
    if given["pixels"] not in allowed:
        raise UserError(
            f"training.pixels is {given['pixels']}, and {found.cls} reads images with "
            f"{' or '.join(allowed)}",
            "squash belongs to encoders without a language model"
            if given["pixels"] == "squash"
            else f"{found.cls} cuts images into tiles and pads them in its own way",
        )
