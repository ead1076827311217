"""Language models of a study and their fingerprints, from files. No torch.

`words` has no weights of its own: its vocabulary follows from the rows of the mixture, which the
training names, so that its fingerprint covers its size alone.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fusionbench.api.errors import UserError
from fusionbench.encoders.card import EncoderCard, read_json
from fusionbench.encoders.snapshots import labelled, weight_files
from fusionbench.readers.fetch import fetch_language, language_folder
from fusionbench.readers.llava.description import Description, describe
from fusionbench.readers.load import WORDS, check_language
from fusionbench.records.cell import canonical
from fusionbench.records.files import file_hash

LLAVA = "llava:"
WORDS_SIZE = (4, 96, 4)
"""Layers, width and heads of `words`."""
_WORDS_VERSION = 1
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
    texts = [folder / name for name in _TEXT_FILES]
    files = [*weight_files(folder), *(file for file in texts if file.is_file())]
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
        raise UserError(f"language model {name!r} is not here", f"`fusionbench fetch {name}`")
    return folder


def _checkpoint(name: str, *, download: bool) -> LanguageCard:
    found = describe(name)
    if found is None and download:
        from fusionbench.readers.llava.checkpoint import fetch

        fetch(name)
        found = describe(name)
    if found is None:
        raise UserError(f"checkpoint {name} is not here", "give a folder: llava:FOLDER")
    # The tokenizer is a part of transformers, which no other study loads for its plan.
    from fusionbench.readers.llava.chat import CheckpointTokenizer, template_for

    tokenizer = CheckpointTokenizer.of_folder(found.folder, name=name)
    return LanguageCard(
        name=found.encoder.label or name,
        weights=_digest([found.weights, found.tokenizer]),
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
        raise UserError(f"language model {name!r} is not here", f"`fusionbench fetch {name}`")
    return found


def _kind(folder: Path) -> str:
    """`model_type` of the configuration; `model` where it names none."""
    with suppress(OSError, ValueError):
        return str(read_json(folder / "config.json").get("model_type") or "model")
    return "model"


def _digest(values: object) -> str:
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:32]
