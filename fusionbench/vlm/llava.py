"""A LLaVA checkpoint inside a training: its parts, how it reads images, which methods fit it."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fusionbench.api.benchmarks import Picture
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, Unsupported
from fusionbench.models.readers.injection import project
from fusionbench.models.readers.language import LanguageModel
from fusionbench.models.readers.llava.checkpoint import Checkpoint, open_checkpoint, projector_for
from fusionbench.models.readers.llava.description import KINDS, unfit
from fusionbench.models.readers.llava.pixels import Views, reader
from fusionbench.models.readers.load import train_language
from fusionbench.models.readers.template import build_template
from fusionbench.records.cell import CellSpec, Training
from fusionbench.vlm.batch import ReadAhead
from fusionbench.vlm.rows import Cached, TrainingRow


def how_trained(training: Training) -> str:
    """What any stage trains of the language model: `none`, `lora` or `full`."""
    trained = {part for stage in training.stages for part in stage.trained}
    return "full" if "language" in trained else "lora" if "lora" in trained else "none"


def weight_type(spec: CellSpec, training: Training, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU with that precision, for a language model whose weights stay as they are;
    else float32.
    """
    half = device.type == "cuda" and spec.budget.precision == "bf16"
    return torch.bfloat16 if half and how_trained(training) != "full" else torch.float32


def open_for(spec: CellSpec, training: Training, device: torch.device) -> Checkpoint:
    """The checkpoint of a training, frozen; its tower in float32, as every encoder.

    Raises UserError as `open_checkpoint` does.
    """
    found = open_checkpoint(
        training.language,
        device=device,
        dtype=weight_type(spec, training, device),
        template=training.stages[-1].template,
    )
    found.encoder.float()
    return found


def language_in(
    checkpoint: Checkpoint, training: Training, seed: int, device: torch.device
) -> LanguageModel:
    """The checkpoint's language model, shared while it is frozen, else a copy that is trained.

    The original of a copy waits in the memory of the host.
    """
    original, how = checkpoint.language, how_trained(training)
    model = original.model
    if how != "none":
        model = copy.deepcopy(model.to("cpu")).to(device)
    tokenizer = original.tokenizer
    language = LanguageModel(
        model,
        tokenizer,
        build_template(training.stages[-1].template, tokenizer),
        name=original.name,
        fingerprint=original.fingerprint,
    )
    if how != "none":
        train_language(language, how, seed=seed)
    return language


def projector_in(checkpoint: Checkpoint, fusion: Method, probe: Fused) -> tuple[nn.Module, str]:
    """(projector, note) behind a fusion: the trained one where its input is as wide, else a fresh
    one that starts at the scale of the tokens of `probe`.

    Raises Unsupported for a method that does not fit the checkpoint's tokens or tiles.
    """
    about, tokens = checkpoint.about, probe.tokens
    if reason := unfit(about, needs_grid=fusion.needs_grid):
        raise Unsupported(reason)
    # A control without an image has no scale.
    known = bool(tokens.isfinite().all()) and float(tokens.float().std()) > 0
    projector, note = projector_for(checkpoint, fusion.out_dim, tokens if known else None)
    # Weights that are trained need float32.
    projector = projector.float()
    with torch.no_grad():
        count = project(probe, projector).shape[1]
    if reason := unfit(about, tokens=count):
        raise Unsupported(reason)
    side = about.encoder.size
    checkpoint.by_picture(probe, projector, [(1, (side, side))] * len(tokens))
    return projector, note


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a checkpoint reads images."""

    alone: ReadAhead[Views]
    several: ReadAhead[Views]
    """For images of a row that has several."""

    @staticmethod
    def of(checkpoint: Checkpoint, pixels: str) -> "Reading":
        """`pixels`: `pad` or `processor`. Raises UserError as `readers.llava.pixels.reader`."""
        read = reader(checkpoint, pixels)

        def alone(picture: Picture) -> Views:
            return read([picture.open()])[0]

        def several(picture: Picture) -> Views:
            # What an image becomes depends on whether there are others, not on which.
            return read([picture.open()] * 2)[0]

        one = ReadAhead(alone)
        tiled = KINDS[checkpoint.about.kind].tiles_several
        return Reading(alone=one, several=one if tiled else ReadAhead(several))


def most_positions(checkpoint: Checkpoint | None, tokens: int) -> int:
    """Most positions of one image in the language model; `tokens`: of one input."""
    tiling = None if checkpoint is None else checkpoint.tiling
    if tiling is None:
        return tokens
    return max(tiling.tokens(size) for size in tiling.pinpoints)


def positions(checkpoint: Checkpoint, row: TrainingRow, tokens: int) -> int:
    """Positions of a row's images in the language model; opens them where they are tiled."""
    tiling = checkpoint.tiling
    if tiling is None:
        return len(row.images) * tokens
    tiles = len(row.images) == 1 or KINDS[checkpoint.about.kind].tiles_several
    found = 0
    for image in row.images:
        if isinstance(image, Cached) or not tiles:
            found += tokens + 1
        else:
            opened = image.open()
            found += tiling.tokens((opened.height, opened.width))
    return found
