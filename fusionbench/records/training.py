"""What decides the training of a vision-language model besides its encoder, method and budget.

A cell of the track `probe` has none. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Query = Literal["question", "prompt", "conversation"]
Mean = Literal["token", "sample"]
Projector = Literal["normed", "plain"]
QUERIES: tuple[Query, ...] = ("question", "prompt", "conversation")
"""Which text a fusion's query is the mean of; answers are in none.

question      the last question alone
prompt        all text but the answers: system prompt, role words, every question, also later ones
              (Mema's published form)
conversation  every question, also later ones
"""
MEANS: tuple[Mean, ...] = ("token", "sample")
PIXELS = ("squash", "pad", "processor")
"""How an image becomes the encoder's input.

squash      both sides are resized
pad         the short side is filled with the mean colour, then resized (LLaVA-1.5's training)
processor   the checkpoint's own image processor; CLIP's cuts the centre out
"""
PROJECTORS: tuple[Projector, ...] = ("normed", "plain")
"""normed: a LayerNorm without parameters in front, so that one learning rate fits hidden states of
every scale; plain: LLaVA's own, which a checkpoint's projector needs."""
TEMPLATES = ("words", "plain", "llava15", "chat")
TRAINED = ("fusion", "projector", "language", "lora")
FRESH = "fresh projector"
"""Note of a record whose method did not fit a checkpoint's trained projector: another regime."""
_LISTS = ("parts", "sizes", "trained")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a training: which weights are trained on which rows."""

    parts: tuple[str, ...]
    """Names of the mixture's parts: tasks, files, hub sets; with the share where it is not 1."""
    rows: str
    """Hash of the training rows."""
    count: int
    """Number of training rows; a conversation of n turns is n rows."""
    sizes: tuple[int, ...] = ()
    """Number of training rows of each part."""
    template: str
    trained: tuple[str, ...]
    """`fusion`, `projector`, and `language` (all weights) or `lora`."""
    steps: int = 0
    """0: the budget's; the same for the values below."""
    batch: int = 0
    lr: float = 0.0
    weight_decay: float = -1.0
    """Negative: the budget's."""
    warmup: float = -1.0
    """Negative: the budget's."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that decides the weights of a model besides encoder, method, budget and seed."""

    language: str
    """`words`, `smollm2-135m`, `hf:<id>`, or the checkpoint's: `llava:<id>`."""
    language_weights: str
    """Fingerprint of weights, tokenizer and chat template; of `words`, of size and vocabulary."""
    stages: tuple[Stage, ...]
    query: Query = "question"
    """What a fusion sees of the text: the question of the turn; `prompt`: all text without
    answers; `conversation`: the questions up to the turn."""
    mean: Mean = "token"
    """Mean of the loss over the labelled tokens of a batch, or over its rows."""
    pixels: str = "squash"
    """How an image becomes a square: `squash`, `pad`, or `processor`, the checkpoint's own."""
    projector: str = "normed"
    """Two layers behind a LayerNorm without parameters, or `plain`, LLaVA's two layers alone."""
    length: int = 0
    """Longest row in tokens, image included; 0: what the language model takes."""
    grouped: bool = False
    """Whether the rows of a step all have an image or all have none."""


def training_from(values: Mapping[str, Any] | None) -> Training | None:
    """The training of its JSON values. Raises TypeError for unknown fields."""
    if values is None:
        return None
    stages = tuple(
        Stage(**{**stage, **{name: tuple(stage[name]) for name in _LISTS if name in stage}})
        for stage in values["stages"]
    )
    return Training(**{**values, "stages": stages})


def plain_training(training: Training) -> dict[str, Any]:
    """The training as JSON values."""
    values = asdict(training)
    # Added later: ids of trainings without it stay.
    if not training.grouped:
        del values["grouped"]
    values["stages"] = [
        {**stage, **{name: list(stage[name]) for name in _LISTS}} for stage in values["stages"]
    ]
    return values
