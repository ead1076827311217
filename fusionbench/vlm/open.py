"""Open a recorded model of the track `vlm`, ask it, and explain an answer by layers.

The model is rebuilt from its record: method with its settings and what was tuned, encoder, language
model, vocabulary. Weights, encoder and language model must be those of the training.

A method reads K hidden states (or means of several), its taps h_1 .. h_K. Leaving tap k out:

    h_k := mean of the other taps,    change_k = log p(answer | without k) - log p(answer)

with the answer's text, and everything else, as they are. log p is the sum over the tokens of the
answer and its end mark, in nats. A negative change: the answer needs what that tap alone has.
The sum of the changes has no meaning, since taps repeat each other.

A method between the blocks of the encoder that writes nothing is treated alike: its taps are all
hidden states. For one that writes, and for a method with one tap, the changes are not defined.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.benchmarks import Picture
from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError, unknown
from fusionbench.api.fusion import Tap
from fusionbench.api.types import Fused
from fusionbench.harness.stepping import States, needs_encoder, taps_of
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.models.readers.llava.checkpoint import Checkpoint
from fusionbench.models.readers.text import IMAGE, Turn
from fusionbench.records.cell import CellRecord, CellSpec, RunOptions, Setting
from fusionbench.records.files import sha256_of
from fusionbench.records.lookup import find_record, split_place
from fusionbench.records.store import Store
from fusionbench.registry.cards import MethodCard
from fusionbench.registry.catalog import Catalog, describe, read_catalog
from fusionbench.registry.plugins import load_encoder, load_method
from fusionbench.study.training import LLAVA, LanguageCard, describe_language
from fusionbench.vlm.batch import Batches, RowBatch
from fusionbench.vlm.checkpoint import Trained, finished, load_weights, model_file
from fusionbench.vlm.evaluate import Asking
from fusionbench.vlm.export import is_export, load_export, read_export
from fusionbench.vlm.llava import open_for
from fusionbench.vlm.model import Built, build_model, training_of
from fusionbench.vlm.rows import TrainingRow
from fusionbench.vlm.session import Session, asking_of

LIMIT = 128
"""Most new tokens of an answer, as in LLaVA-1.5's evaluation."""
SIZE = 8
"""Rows at a time."""
_VLM = "cells of `fusionbench run --track vlm` have one"


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A trained model with its record; frozen, in evaluation mode."""

    record: CellRecord
    card: MethodCard
    settings: Mapping[str, Setting]
    """The record's, with what was chosen on val."""
    trained: Trained
    built: Built
    asking: Asking

    @property
    def spec(self) -> CellSpec:
        """The specification of the record."""
        return self.record.spec

    def ask(self, pictures: Sequence[Picture], question: str, *, limit: int = LIMIT) -> str:
        """The greedy answer to a question about any number of pictures, also none.

        Raises UserError for an image that cannot be read, for marks `<image>` in the question that
        are not as many as the pictures, and if the language model's context is too short.
        """
        return self.answers([asked(pictures, question)], limit=limit)[0]

    def answers(self, rows: Sequence[TrainingRow], *, limit: int = LIMIT) -> list[str]:
        """The greedy answer to each row, at most `limit` tokens; rows as `asked` makes them."""
        return [text for row in rows for text in self.answer(row, limit=limit)[0]]

    def answer(self, row: TrainingRow, *, limit: int = LIMIT) -> tuple[list[str], Fused]:
        """The answer to one row, in a list, and all that the fusion gave for its pictures."""
        (batch,) = self.asking.batches([row])
        with self.asking.autocast():
            return self.built.model.answer(batch, limit=limit)

    def losses(
        self, pictures: Sequence[Picture], question: str, options: Sequence[str]
    ) -> tuple[float, ...]:
        """The negative log-likelihood of each option as the answer, end mark included, in nats.

        Raises UserError for an empty option.
        """
        rows = [asked(pictures, question, option) for option in options]
        return tuple(loss for batch in self.told(rows) for loss in self.losses_of(batch))

    def told(self, rows: Sequence[TrainingRow]) -> Iterator[RowBatch]:
        """Rows with their answers, in batches."""
        made = Batches(rows, self.asking.told, self.asking.states)
        for first in range(0, len(rows), self.asking.size):
            yield made.fetch(range(first, min(first + self.asking.size, len(rows))))

    def losses_of(self, batch: RowBatch) -> list[float]:
        """The negative log-likelihood of each row's answer in nats."""
        with self.asking.autocast():
            found: list[float] = self.built.model.losses(batch).tolist()
        return found


def asked(pictures: Sequence[Picture], question: str, answer: str = "") -> TrainingRow:
    """A question, with its answer if there is one, as a row. Marks go in front where it has none.

    Raises UserError for a question without text, and for another number of marks than pictures.
    """
    marks = question.count(IMAGE)
    if not question.replace(IMAGE, "").strip():
        raise UserError("the question is empty", 'for example "How many cubes?"')
    if marks not in (0, len(pictures)):
        raise UserError(
            f"the question has {marks} marks {IMAGE}, but {len(pictures)} pictures were given",
            f"write one {IMAGE} for each picture, or none",
        )
    text = question if marks else f"{IMAGE}\n" * len(pictures) + question
    return TrainingRow(name="asked", images=tuple(pictures), turns=(Turn(text, answer),))


def open_model(
    cell: str,
    folder: str | Path,
    *,
    catalog: Catalog | None = None,
    device: str | torch.device = "cpu",
    size: int = SIZE,
) -> OpenModel:
    """The model of a record in a folder of results.

    `cell`: the id of a cell or model, a unique start of it, `models/<id>`, a path to a file of
    either, or a folder that `fusionbench export` wrote. `catalog`: by default the methods of the
    package, of entry points and of FUSIONBENCH_PLUGINS. `size`: most rows at a time. Raises
    UserError for an unknown id (with the nearest), for a cell without weights, of the track
    `probe`, or whose weights, method, encoder or language model are not those of its training.
    """
    if is_export(Path(cell)):
        record, trained = read_export(Path(cell))
        opened = rebuild(record, trained, catalog=catalog, device=device, size=size)
        load_export(Path(cell), opened.built.model)
        return opened
    home, name, of_model = split_place(cell, Path(folder))
    store = Store.open(home)
    record = find_record(store, name, model=of_model)
    trained = trained_of(store, record)
    opened = rebuild(record, trained, catalog=catalog, device=device, size=size)
    load_weights(model_file(store.folder, record.model), opened.built.model)
    return opened


def trained_of(store: Store, record: CellRecord) -> Trained:
    """What is known of a record's training. Raises UserError if its weights are not here."""
    require_model(record)
    file = model_file(store.folder, record.model)
    if not file.exists():
        raise UserError(
            f"cell {record.id} has no weights: {file} is missing",
            "weights stay in the folder that the study ran into; `merge` copies none",
        )
    found = finished(store.folder, record.model)
    if found is None or sha256_of(file) != record.model_weights:
        raise UserError(
            f"{file} or its .json is damaged, or not of cell {record.id}",
            "remove both and the cell's record, and run the study again",
        )
    return found


def require_model(record: CellRecord) -> None:
    """Raise UserError for a record that no weights belong to."""
    spec = record.spec
    if spec.training is None:
        raise UserError(
            f"cell {record.id} is of the track {spec.track}: it has no language model", _VLM
        )
    if record.source:
        raise UserError(f"cell {record.id} was imported from {record.source}, without weights")
    if record.status != "done" or not record.model:
        why = record.reason.strip().splitlines() or ["no reason was recorded"]
        raise UserError(f"cell {record.id} has no weights: it was {record.status}: {why[-1]}", _VLM)


def rebuild(
    record: CellRecord,
    trained: Trained,
    *,
    catalog: Catalog | None = None,
    device: str | torch.device = "cpu",
    size: int = SIZE,
) -> OpenModel:
    """The model of a record with the weights that its training started from.

    Raises UserError if method, encoder or language model are not those of the record.
    """
    catalog = read_catalog(()) if catalog is None else catalog
    spec = record.spec
    card = _method(record, catalog)
    settings = {**spec.settings, **_tuned(trained)}
    encoder, checkpoint = _encoder(spec, _language(spec), catalog, torch.device(device))
    built = build_model(load_method(card), settings, spec, encoder, trained.vocabulary, checkpoint)
    built.model.requires_grad_(False).eval()
    session = Session.open(
        encoder, {}, {}, (), training_of(spec), RunOptions(), built.model.device, checkpoint
    )
    return OpenModel(
        record=record,
        card=card,
        settings=settings,
        trained=trained,
        built=built,
        asking=asking_of(session, built, spec, size),
    )


def _tuned(trained: Trained) -> dict[str, Setting]:
    """Settings that were chosen on val, such as the layer of `best_single`."""
    found = trained.tuned.get("settings", {})
    return {key: tuple(one) if isinstance(one, list) else one for key, one in found.items()}


def _method(record: CellRecord, catalog: Catalog) -> MethodCard:
    spec = record.spec
    if spec.method not in catalog.methods:
        raise unknown("method", spec.method, catalog.methods, "name its file with --plugin")
    card = catalog.methods[spec.method]
    if card.version != spec.method_version:
        by = record.provenance.get("code", {}).get("fusionbench", "another version")
        raise UserError(
            f"cell {record.id} was trained with version {spec.method_version} of {spec.method}, "
            f"here is version {card.version}",
            f"FusionBench {by} trained it",
        )
    return card


def _language(spec: CellSpec) -> LanguageCard:
    training = training_of(spec)
    name = training.language
    checkpoint = name if name.startswith(LLAVA) else ""
    card = describe_language("" if checkpoint else name, checkpoint, download=False)
    if card.weights != training.language_weights:
        raise _other("language model", name, training.language_weights, card.weights)
    return card


def _encoder(
    spec: CellSpec, language: LanguageCard, catalog: Catalog, device: torch.device
) -> tuple[Encoder, Checkpoint | None]:
    """The encoder, and the LLaVA checkpoint where it is a part of one."""
    size = spec.budget.image_size
    card = language.tower or _encoder_card(spec.encoder, size, catalog)
    if not card.available:
        raise UserError(f"the weights of encoder {spec.encoder!r} are not here", card.get)
    if card.weights != spec.weights:
        raise _other("encoder", spec.encoder, spec.weights, card.weights)
    if language.tower is not None:
        checkpoint = open_for(spec, training_of(spec), device)
        return checkpoint.encoder, checkpoint
    return load_encoder(card, image_size=size, device=str(device)), None


def _encoder_card(name: str, size: int, catalog: Catalog) -> EncoderCard:
    try:
        return describe(catalog, name, image_size=size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), "name the plug-in's file with --plugin") from error


def _other(kind: str, name: str, wanted: str, found: str) -> UserError:
    return UserError(
        f"{kind} {name!r} has other weights than in the training: fingerprint {found[:12]}, "
        f"trained with {wanted[:12]}",
        "restore the files that the study ran with",
    )


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """An answer, the method's own weights of the layers, and the change without each tap."""

    answer: str
    trace: Mapping[str, tuple[float, ...]]
    """Instrument of the method -> one number for each tap or block; often empty."""
    log_probability: float | None
    """Of the answer with its end mark, in nats; None for an empty answer."""
    taps: tuple[Tap, ...]
    changes: tuple[float, ...]
    """Change of the log-probability without each tap; empty where it is not defined."""
    reason: str = ""
    """Why there are no changes."""


def explain(
    opened: OpenModel, pictures: Sequence[Picture], question: str, *, limit: int = LIMIT
) -> LayerReport:
    """Ask a model and leave out each hidden state in turn. Raises UserError as `ask` does."""
    (text,), fused = opened.answer(asked(pictures, question), limit=limit)
    fusion = opened.built.model.fusion
    taps = taps_of(fusion)
    reason = _undefined(opened, len(pictures), text)
    log_probability: float | None = None
    changes: list[float] = []
    if text.strip():
        (batch,) = opened.told([asked(pictures, question, text)])
        log_probability = -opened.losses_of(batch)[0]
        if not reason:
            whole = log_probability
            changes = [-opened.losses_of(one)[0] - whole for one in left_out(batch, taps)]
    return LayerReport(
        answer=text,
        trace={name: _numbers(value) for name, value in sorted(fused.trace.items())},
        log_probability=log_probability,
        taps=taps,
        changes=tuple(changes),
        reason=reason,
    )


def left_out(batch: RowBatch, taps: tuple[Tap, ...]) -> Iterator[RowBatch]:
    """The batch without each tap in turn: the mean of the others stands in its place."""
    with torch.no_grad():
        states = batch.states(taps)
    for place in range(len(taps)):
        yield replace(batch, states=_fixed(without(states, place)))


def without(
    states: Float[Tensor, "tap batch token dim"], place: int
) -> Float[Tensor, "tap batch token dim"]:
    """The states with the mean of the others in one place. Raises ValueError for a single tap."""
    if len(states) < 2:
        raise ValueError("a single tap has no others to take its place")
    kept = [row for row in range(len(states)) if row != place]
    changed = states.clone()
    changed[place] = states[kept].mean(dim=0)
    return changed


def _fixed(states: Float[Tensor, "tap batch token dim"]) -> States:
    def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        return states

    return gather


def _undefined(opened: OpenModel, pictures: int, text: str) -> str:
    """Why the changes are not defined; empty if they are."""
    fusion = opened.built.model.fusion
    name = opened.record.label or opened.spec.method
    if not text.strip():
        return "the answer is empty: it has no log-probability"
    if not pictures:
        return "there is no picture"
    if needs_encoder(fusion):
        return f"{name} writes between the encoder's blocks: later states depend on earlier ones"
    if len(taps_of(fusion)) < 2:
        return f"{name} reads one hidden state: no other can take its place"
    return ""


def _numbers(value: Tensor) -> tuple[float, ...]:
    return tuple(float(one) for one in value.float().flatten())
