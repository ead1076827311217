"""A trained model as a folder of files, with its model card, that needs no folder of results.

README.md              model card: measured numbers, what was trained and on what, versions
config.json            method, settings, encoder, language model, training, hash of each file
fusion.safetensors     the fusion's weights under the names of its official code
projector.safetensors  `linear_1`, `linear_2`, as in LLaVA of transformers
language.safetensors   the language model's trained weights, with the names of transformers
records.jsonl          the records of the model, whole
training.json          losses, vocabulary, what was chosen on val

The folder appears complete or not at all.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fusionbench.api.errors import UserError, disk_error
from fusionbench.api.fusion import Method
from fusionbench.records.cell import CellRecord, json_object, plain_training
from fusionbench.records.files import sha256_of, write_atomic
from fusionbench.records.schema import Facts, full_text
from fusionbench.records.text import markdown_cell, markdown_page, one_line
from fusionbench.vlm.checkpoint import Trained, trained_from
from fusionbench.vlm.model import VisionLanguageModel, training_of

if TYPE_CHECKING:
    from fusionbench.vlm.open import OpenModel

_LISTED = 5
"""Parts of a mixture that a line names."""
_USE = (
    "```text",
    'fusionbench ask FOLDER picture.png "How many cubes?"',
    "```",
    "",
    "`FOLDER` is this folder. Encoder and language model are not in it and must have the "
    "fingerprints above.",
)


def model_card(
    config: Mapping[str, Any],
    records: Sequence[CellRecord],
    blind: Sequence[CellRecord],
    *,
    losses: Sequence[float] = (),
) -> str:
    """Markdown from a model's configuration and records.

    `blind`: records of the model without an image with the same training and seed, which the table
    shows beside. Every number is that of a record; without one the table has a dash.
    """
    method, seed = config["method"], config["seed"]
    title = f"{method['label']} between {config['encoder']['name']} and"
    sections: Mapping[str, Iterable[str]] = {
        "Measured": [
            *_numbers(records, blind),
            "",
            f"One run, seed {seed}: differences between runs are not in these numbers. "
            "`blind` is a model that was trained alike with image tokens set to zero.",
        ],
        "Training": _training(config, records[0], losses),
        "Files": _files(config),
        "Use": _USE,
        "Versions": _versions(records[0]),
    }
    lines = [f"# {title} {config['language']['name']}", "", _about(config)]
    for name, body in sections.items():
        lines += ["", f"## {name}", "", *body]
    return "\n".join(lines) + "\n"


def _about(config: Mapping[str, Any]) -> str:
    method, encoder, language = config["method"], config["encoder"], config["language"]
    paper = f" ({method['paper']})" if method["paper"] else ""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(method["settings"].items()))
    return (
        f"Fusion of the layers of a frozen vision encoder by {method['name']}{paper}, version "
        f"{method['version']}, settings: {settings or 'none'}. Encoder {encoder['name']}, "
        f"fingerprint `{encoder['weights'][:16]}`; language model {language['name']}, fingerprint "
        f"`{language['weights'][:16]}`."
    )


def _numbers(records: Sequence[CellRecord], blind: Sequence[CellRecord]) -> Iterator[str]:
    """A row for each task, and below it one for each further measure."""
    without = {(one.spec.task, one.items): one for one in blind}
    yield "| task | measure | value | blind | chance | questions |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        other = without.get((record.spec.task, record.items))
        own = other.score if other else None
        task = markdown_cell(record.spec.task)
        yield (
            f"| {task} | {record.metric} | {_percent(record.score)} | {_percent(own)} "
            f"| {_percent(record.chance)} | {record.examples} |"
        )
        seen = {**record.scores, **record.measures}
        blank = {**other.scores, **other.measures} if other else {}
        for name in sorted(seen.keys() - {record.metric}):
            values = f"{_plain(seen[name])} | {_plain(blank.get(name))}"
            yield f"| {task} | {markdown_cell(name)} | {values} | - | - |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _training(
    config: Mapping[str, Any], record: CellRecord, losses: Sequence[float]
) -> Iterator[str]:
    training, budget = config["training"], record.spec.budget
    for number, stage in enumerate(training["stages"], 1):
        yield (
            f"- Stage {number}: {', '.join(stage['trained'])} trained, template "
            f"{stage['template']}, {stage['steps'] or budget.steps} steps of "
            f"{stage['batch'] or budget.batch} rows, learning rate "
            f"{stage['lr'] or config['lr']:g}; {stage['count']} rows of {_parts(stage['parts'])} "
            f"(hash `{stage['rows'][:16]}`)."
        )
    yield (
        f"- Query of the fusion: {training['query']}; loss: mean over each {training['mean']}; "
        f"pixels: {training['pixels']}; projector: {training['projector']}; optimiser "
        f"{budget.optimiser}, precision {budget.precision}."
    )
    sizes = ", ".join(f"{part} {count:,}" for part, count in sorted(record.parameters.items()))
    yield f"- Parameters: {sizes or 'not recorded'}."
    if losses:
        yield f"- Training loss: {losses[0]:.4g} at the first step, {losses[-1]:.4g} at the last."
    yield from (f"- Note: {one_line(note)}." for note in record.notes)
    yield from (f"- Counted: {what}: {count}." for what, count in sorted(record.counts.items()))


def _parts(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _files(config: Mapping[str, Any]) -> Iterator[str]:
    names = config["method"]["names"]
    if names == "official":
        yield (
            "Weights of the fusion have the names that the method's `load_official` reads: those "
            "of its official code where there is one."
        )
    else:
        yield f"Weights of the fusion have {names}."
    yield ""
    yield from ("| file | sha256 |", "|---|---|")
    for name, digest in sorted(config["files"].items()):
        yield f"| {name} | `{digest}` |"


def _versions(record: CellRecord) -> Iterator[str]:
    found = record.provenance
    for part in ("code", "software", "hardware"):
        known = {key: value for key, value in found.get(part, {}).items() if value != ""}
        facts = ", ".join(f"{key} {value}" for key, value in sorted(known.items()))
        yield f"- {part}: {facts or 'not recorded'}"


FORMAT = "fusionbench-vlm 1"
CONFIG, RECORDS, TRAINING, CARD = "config.json", "records.jsonl", "training.json", "README.md"
_PARTS = ("fusion", "projector", "language")
_INNER = "model."
"""Of the language model's parameters, in front of the names that transformers gives."""
_AGAIN = "export the cell again"


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `write_export` made."""
    try:
        values = json_object((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return values.get("format") == FORMAT


def write_export(
    opened: "OpenModel",
    records: Sequence[CellRecord],
    folder: Path,
    *,
    blind: Sequence[CellRecord] = (),
) -> Path:
    """Write a model into a new folder.

    `records`: of the same model, one for each task; `blind`: of the model without an image, for
    comparison. Raises UserError if the folder holds anything or cannot be written.
    """
    refuse_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write(opened, records, temporary, blind)
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def refuse_taken(folder: Path) -> None:
    """Raise UserError for a file, and for a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already", "choose a new folder")


def _write(
    opened: "OpenModel",
    records: Sequence[CellRecord],
    folder: Path,
    blind: Sequence[CellRecord],
) -> None:
    fusion, names = official(opened.built.model.fusion)
    weights = {
        "fusion": fusion,
        "projector": dict(opened.built.model.projector.state_dict()),
        "language": _language(opened),
    }
    for part, tensors in weights.items():
        if tensors:
            write_atomic(folder / f"{part}.safetensors", _packed(tensors))
    lines = [full_text(record) for record in records]
    write_atomic(folder / RECORDS, "".join(f"{line}\n" for line in lines).encode())
    write_atomic(folder / TRAINING, json.dumps(asdict(opened.trained), sort_keys=True).encode())
    hashes = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    config = _config(opened, names, hashes)
    write_atomic(folder / CONFIG, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    card = model_card(config, records, blind, losses=opened.trained.losses)
    write_atomic(folder / CARD, markdown_page(card).encode())


def official(fusion: Method) -> tuple[dict[str, Tensor], str]:
    """A fusion's weights, and `official` if `load_official` reads them back exactly.

    Without an official form they have this package's names, and the text is the reason.
    """
    own = dict(fusion.state_dict())
    if not own:
        return own, "official"
    try:
        found = fusion.official_weights()
        twin = copy.deepcopy(fusion)
        with torch.no_grad():
            for value in twin.state_dict().values():
                value.zero_()
        twin.load_official(found)
    except (ValueError, RuntimeError) as error:
        return own, f"names of this package: {error}"
    again = twin.state_dict()
    if any(not torch.equal(again[name], value) for name, value in own.items()):
        return own, "names of this package: `load_official` does not read the others back"
    return found, "official"


def _language(opened: "OpenModel") -> dict[str, Tensor]:
    """What some stage trained of the language model."""
    trained = {part for stage in training_of(opened.spec).stages for part in stage.trained}
    return {
        name.removeprefix(_INNER): value.detach()
        for name, value in opened.built.model.language.named_parameters()
        if ("lora" if "lora_" in name else "language") in trained
    }


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(plain, metadata={"format": "pt"})


def _config(opened: "OpenModel", names: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    spec, card = opened.spec, opened.card
    training = training_of(spec)
    return {
        "format": FORMAT,
        "model": spec.model_id,
        "seed": spec.seed,
        "method": {
            "name": spec.method,
            "version": spec.method_version,
            "label": opened.record.label or spec.method,
            "settings": dict(opened.settings),
            "source": card.source,
            "paper": card.facts.get("paper", ""),
            "names": names,
        },
        "encoder": {
            "name": spec.encoder, "weights": spec.weights, "image_size": spec.budget.image_size,
        },
        "language": {"name": training.language, "weights": training.language_weights},
        "training": plain_training(training),
        "lr": opened.trained.lr,
        "files": dict(hashes),
    }  # fmt: skip


def read_export(folder: Path) -> tuple[CellRecord, Trained]:
    """The first record of an exported model and its training, files compared with their hashes.

    Raises UserError for a file that is missing, damaged or edited.
    """
    for name, wanted in _values(folder / CONFIG)["files"].items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing", _AGAIN)
        if sha256_of(file) != wanted:
            raise UserError(f"{file} is damaged or edited", _AGAIN)
    line = (folder / RECORDS).read_text(encoding="utf-8").splitlines()[0]
    try:
        return Facts().read(line), trained_from(_values(folder / TRAINING))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {error}", _AGAIN) from error


def load_export(folder: Path, model: VisionLanguageModel) -> None:
    """Put the weights of an exported folder into a model. Raises UserError for damaged files."""
    names = _values(folder / CONFIG)["method"]["names"]
    parts = {part: _tensors(folder / f"{part}.safetensors") for part in _PARTS}
    try:
        if parts["fusion"] and names == "official":
            model.fusion.load_official(parts["fusion"])
        else:
            model.fusion.load_state_dict(parts["fusion"])
        model.projector.load_state_dict(parts["projector"])
        language = {f"{_INNER}{name}": value for name, value in parts["language"].items()}
        # Frozen weights are those of the language model itself.
        found = model.language.load_state_dict(language, strict=False)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder} holds weights of another model: {error}", _AGAIN) from error
    if found.unexpected_keys:
        raise UserError(f"{folder} holds weights of another model", _AGAIN)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; none without it, for a part that has no weights of its own."""
    with suppress(FileNotFoundError):
        try:
            return dict(load(file.read_bytes()))
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: {error}", _AGAIN) from error
    return {}


def _values(file: Path) -> dict[str, Any]:
    try:
        return json_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}", _AGAIN) from error
