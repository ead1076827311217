"""A model of a specification: encoder, fusion, projector and language model, freshly initialised.

The language model's stream knows the seed, the fusion's also its class; the projector's knows the
seed and its widths. Methods of one seed start from the same language model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.seeding import seed_of
from fusionbench.api.types import Fused, ReaderShape, StackShape, Unsupported
from fusionbench.harness.model import seeded_fusion
from fusionbench.harness.stepping import fuse
from fusionbench.readers.labels import EncodedRow, encode
from fusionbench.readers.language import LanguageModel, config_shape
from fusionbench.readers.llava.checkpoint import Checkpoint
from fusionbench.readers.load import WORDS, load_language
from fusionbench.readers.projector import LanguageProjector
from fusionbench.readers.template import build_template
from fusionbench.records.cell import QUESTION, CellSpec, Setting, Stage, Training
from fusionbench.study.training import WORDS_SIZE, checkpoint_folder
from fusionbench.vlm.batch import Encode
from fusionbench.vlm.conversations import Row
from fusionbench.vlm.llava import how_trained, language_in, projector_in, weight_type
from fusionbench.vlm.model import VisionLanguageModel
from fusionbench.vlm.states import encoded

_STREAM = "vlm"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model and what a record says of it."""

    model: VisionLanguageModel
    notes: tuple[str, ...] = ()
    fresh: bool = False
    """Whether a checkpoint's projector was replaced by a new one, which every stage trains."""


def training_of(spec: CellSpec) -> Training:
    """The training of a specification of this track. Raises TypeError for any other."""
    if spec.training is None:
        raise TypeError(f"a cell of the track {spec.track} has no training")
    return spec.training


def build_model(  # noqa: PLR0913
    method: type[Method],
    settings: Mapping[str, Setting],
    spec: CellSpec,
    encoder: Encoder,
    vocabulary: Sequence[str],
    checkpoint: Checkpoint | None = None,
) -> Built:
    """The model that a training starts from.

    `vocabulary`: the texts whose words are those of the language model `words`. `checkpoint`: the
    parts of a LLaVA checkpoint, where the training names one. Raises Unsupported for a method that
    does not fit encoder or language model, or that would have to be trained where nothing is.
    """
    training = training_of(spec)
    language = language_of(training, spec, vocabulary, device_of(encoder), checkpoint)
    fusion = fusion_of(method, settings, encoder, language.shape, spec.seed)
    fusion = fusion.to(device_of(encoder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(_STREAM, spec.seed, "projector"))
        projector, note = _projector(fusion, language, encoder, spec, checkpoint)
    built = Built(
        model=VisionLanguageModel(fusion, projector, language, encoder, checkpoint),
        notes=(*fusion.notes, *([note] if note else [])),
        fresh=bool(note),
    )
    _refuse_untrained(built, training)
    return built


def _projector(
    fusion: Method,
    language: LanguageModel,
    encoder: Encoder,
    spec: CellSpec,
    checkpoint: Checkpoint | None,
) -> tuple[nn.Module, str]:
    """(projector, note of a checkpoint's that was replaced)."""
    if checkpoint is not None:
        return projector_in(checkpoint, fusion, probed(fusion, language, encoder, spec))
    kind = training_of(spec).projector
    found = LanguageProjector(fusion.out_dim, language.shape.width, kind=kind, scale=language.scale)
    return found.to(device_of(encoder)), ""


@torch.no_grad()
def probed(fusion: Method, language: LanguageModel, encoder: Encoder, spec: CellSpec) -> Fused:
    """What a fusion makes of one fixed image of noise: number and scale of its tokens."""
    draw = torch.Generator().manual_seed(0)
    size, device = encoder.size, device_of(encoder)
    image = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=draw).to(device)
    query = language.scale * torch.randn(1, language.shape.width, generator=draw).to(device)
    bf16 = spec.budget.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = fuse(fusion.eval(), encoded(encoder, [image]), query, encoder)
    fusion.train()
    return found


def _refuse_untrained(built: Built, training: Training) -> None:
    """Unsupported for random weights in a study that trains nothing."""
    if any(stage.trained for stage in training.stages):
        return
    if built.fresh:
        raise Unsupported("needs a projector of another width, and this study trains nothing")
    if any(True for _ in built.model.fusion.parameters()):
        raise Unsupported("has weights of its own, and this study trains nothing")


def fusion_of(
    method: type[Method],
    settings: Mapping[str, Setting],
    encoder: Encoder,
    reader: ReaderShape,
    seed: int,
) -> Method:
    """The fusion that a training of this seed starts from."""
    shape = shape_with(encoder, reader)
    return seeded_fusion(method, settings, shape, stream=(_STREAM, seed))


def shape_with(encoder: Encoder, reader: ReaderShape) -> StackShape:
    """The encoder's stack with the query's width and the language model's layers."""
    return replace(encoder.shape, query_dim=reader.width, mlp=encoder.mlp, reader=reader)


def reader_shape(spec: CellSpec) -> ReaderShape:
    """Size of the language model's layers, from its configuration alone."""
    name = training_of(spec).language
    if name == WORDS:
        layers, width, heads = WORDS_SIZE
        return ReaderShape(layers=layers, width=width, heads=heads, mlp=2 * width)
    from transformers import AutoConfig

    from fusionbench.encoders.families import LOCAL

    folder = checkpoint_folder(name)
    return config_shape(AutoConfig.from_pretrained(folder, **LOCAL))


def language_of(
    training: Training,
    spec: CellSpec,
    vocabulary: Sequence[str],
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> LanguageModel:
    """The language model, with gradients where some stage trains it."""
    if checkpoint is not None:
        return language_in(checkpoint, training, spec.seed, device)
    layers, width, heads = WORDS_SIZE
    return load_language(
        training.language,
        texts=vocabulary,
        seed=spec.seed,
        device=device,
        dtype=weight_type(spec, training, device),
        trained=how_trained(training),
        template=training.stages[-1].template,
        layers=layers,
        width=width,
        heads=heads,
    )


def set_trained(model: VisionLanguageModel, stage: Stage, *, fresh: bool = False) -> list[str]:
    """Enable the gradients of what a stage trains; returns the names of these parameters.

    `fresh`: the projector is trained whatever the stage names.
    """
    model.fusion.requires_grad_("fusion" in stage.trained)
    model.projector.requires_grad_(fresh or "projector" in stage.trained)
    for name, parameter in model.language.named_parameters():
        lora = "lora_" in name
        parameter.requires_grad_(("lora" if lora else "language") in stage.trained)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def encoder_of_rows(
    language: LanguageModel, training: Training, template: str, *, answer: bool
) -> Encode:
    """Encodes rows with a template; with `answer` the last answer is labelled."""
    chosen = build_template(template, language.tokenizer)

    def run(row: Row) -> EncodedRow:
        return encode(
            language.tokenizer,
            chosen,
            row.turns,
            answer=answer,
            query=training.query,
            limit=training.length or None,
            later=row.later,
        )

    return run


def stranger(settings: Mapping[str, Setting], seed: int) -> int | None:
    """The seed of `Batches`' shuffling for the setting `question=shuffled`, else None."""
    return seed if settings.get(QUESTION) == "shuffled" else None


def device_of(encoder: Encoder) -> torch.device:
    """Where the encoder is."""
    return next(encoder.parameters()).device


def is_words(training: Training) -> bool:
    """Whether the language model is trained from scratch on the words of the rows."""
    return training.language == WORDS
