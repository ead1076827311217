"""Specification, budget and record of a cell; standard library only.

A cell's id is the hash of its specification, which holds every field that decides the outcome and
no other: see `IDENTITY` and `NOT_IDENTITY`. `Training` decides a vision-language model besides
encoder, method and budget; a cell of the track `probe` has none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, lru_cache
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
    answers; `conversation`: the questions of all turns."""
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


@lru_cache(maxsize=64)
def training_hash(training: Training | None) -> str:
    """16 hexadecimal digits of the fields of a training; empty without one."""
    return "" if training is None else checksum(asdict(training))


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


SCHEMA = 2
SCHEMAS = (1, SCHEMA)
"""Schemas that this version reads."""
TUNING_SEED = 1000
"""First seed of tuning runs, which choose the learning rate; no evaluation uses these seeds."""

READER, QUESTION = "reader", "question"
"""Engine-level settings: accepted for every method, not passed to its constructor, stored only
when they differ from the default. They set the cell's reader and the question the fusion sees."""
READERS = ("attentive", "ridge", "decoder", "decoder-6")
RIDGE = "ridge"
QUESTIONS = ("shuffled",)
"""`shuffled`: the fusion sees the question of a random training example; the reader's is true."""

Setting = bool | int | float | str | tuple[int, ...]
Purpose = Literal["tune", "evaluate"]
Status = Literal["done", "skipped", "diverged", "failed"]
"""`diverged`: a loss, a weight or a logit became infinite or NaN; a record without a score."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Training budget, equal for every method of a study; part of a cell's identity."""

    steps: int
    batch: int
    lrs: tuple[float, ...]
    """Learning rates to choose from; one of them means no tuning."""
    tuning_seeds: int = 3
    optimiser: str = "adamw"
    """`adamw`, or `muon`: Muon for matrices, AdamW for all other parameters."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; a cosine brings it down to 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    train_items: int = 0
    """Examples of the split in use, the first of its fixed order; 0: all of them."""
    val_items: int = 0
    test_items: int = 0
    resample: str = "bootstrap"
    """What a seed redraws of the training examples: `bootstrap` (N of N with replacement),
    `distinct` (`draw` of N without) or `none`."""
    reader: str = "attentive"
    reader_width: int = 64
    query_dim: int = 64
    precision: str = "fp32"
    """`fp32`, or `bf16` for bf16 autocast."""
    feature_dtype: str = "float32"
    """How hidden states are stored: `float32` or `float16`."""
    image_size: int = 0
    """Side of the encoder's input in pixels; 0: the encoder's own."""
    seeds_per_pass: int = 1
    """Seeds trained together in one pass; the layout is part of the identity."""
    draw: int = 0
    """Training examples of a seed with `resample: distinct`, at most three quarters of them, so
    that seeds differ."""
    trial_steps: int = 0
    """Of the track `vlm`: steps of the runs that choose a layer; 0: `steps`."""
    positions: str = "none"
    """Positions of the tokens in the attentive reader: `grid` or `none`."""
    vector_lr: float = 0.0
    """Learning rate of parameters with at most one dimension (mixing weights, gates, norms); 0:
    that of the matrices."""
    random_layer: str = "fixed"
    """The ridge reader's random layer: `fixed`, one for each width of the tokens, or `seed`,
    another for each task and seed."""


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """The unit of work, storage and statistics: (track, encoder, method, task, seed)."""

    track: str = "probe"
    stage: Purpose = "evaluate"
    encoder: str
    weights: str
    """Fingerprint of the encoder's weights and configuration."""
    method: str
    method_version: int
    settings: Mapping[str, Setting]
    """Complete: defaults filled in."""
    task: str
    task_version: int
    data: str
    """Hash of the task's images, questions, answers and splits."""
    budget: Budget
    seed: int
    training: Training | None = None
    """Of the track `vlm`: one training serves all tasks of its seed."""

    @property
    def split(self) -> Literal["val", "test"]:
        """The examples that the cell is scored on."""
        return "val" if self.stage == "tune" else "test"

    @property
    def id(self) -> str:
        """20 hexadecimal digits of the SHA-256 of the canonical JSON of `hashed`."""
        return _digest(_identity(self))

    @property
    def model_id(self) -> str:
        """The id of the training that the cell is scored on: equal for all its tasks."""
        values = _identity(self)
        return _digest({name: values[name] for name in values.keys() - _OF_TASK})


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRecord:
    """Result of one cell; immutable once written."""

    spec: CellSpec
    status: Status
    reason: str = ""
    """Why a cell was skipped, or the error of a failed one."""
    label: str = ""
    """The method's name with changed settings: `mema[reduction=2]`."""
    family: str = ""
    """The method's family; variants of one family count as one method."""
    control: str = ""
    """The method's matched control, or a sentence on why none exists."""
    representative: bool = False
    """True for the one method that represents its family, with default settings."""
    reads_answers: bool = False
    """True for a method that sees the answers in training; it enters no aggregate."""
    group: str = ""
    """The task's skill: `fine` or `semantic`."""
    task_family: str = ""
    """Kind of task; a claim about new tasks counts each kind once."""
    in_suite: bool = False
    """True if the task counts in the suite's aggregate; from the task's card."""
    metric: str = "accuracy"
    chance: float = 0.0
    score: float | None = None
    """Mean outcome of the test examples (val examples for a tuning run)."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Value of each named metric of the task (`Task.metrics`); empty in schema 1."""
    left_out: Mapping[str, list[float]] = field(default_factory=dict)
    """Metric that is not a mean of outcomes -> its values without each block of image groups."""
    examples: int = 0
    distinct: int = 0
    """Distinct answers that the reader gave to these examples; 0: not recorded."""
    tokens: int = 0
    """Tokens that the fusion handed to the reader; 0: not recorded."""
    items: str = ""
    """Hash of the file that names the examples and their image groups."""
    outcomes: str = ""
    """SHA-256 of the file with one score per example."""
    seed_scope: Literal["task", "suite"] = "task"
    lr: float | None = None
    tuning: Mapping[str, list[float]] = field(default_factory=dict)
    """Learning rate -> val scores of the tuning seeds."""
    lr_at_edge: bool = False
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Trainable parameters of `fusion`, `projector` and `reader`; frozen ones of `encoder`."""
    taps: tuple[tuple[int, ...], ...] = ()
    in_encoder: bool = False
    """True if the encoder ran in every step (no feature cache)."""
    notes: tuple[str, ...] = ()
    loss: tuple[float, ...] = ()
    """Training loss at evenly spaced steps, first and last included."""
    trace: Mapping[str, list[float]] = field(default_factory=dict)
    """The method's instruments on the test examples, one number per layer."""
    unmoved: tuple[str, ...] = ()
    """Parameters of the fusion that no gradient ever reached."""
    fit: Mapping[str, str | float] = field(default_factory=dict)
    """Of the ridge reader: `kernel` and `strength`, and the leave-one-out `error` with it, as a
    share of the answers' variance; the same with `_before` from before the fusion was trained."""
    model: str = ""
    """Of the track `vlm`: the id of the training (`CellSpec.model_id`)."""
    model_weights: str = ""
    """SHA-256 of the file of trained weights, `models/<model>.safetensors`."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Named readings of a benchmark beside the score, each as its papers report it."""
    answers: str = ""
    """SHA-256 of the text of all answers, `answers/<id>.jsonl.gz`."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was counted in training and test: rows that were dropped, words without a token."""
    source: str = ""
    """Where an imported record comes from; empty for a cell that FusionBench ran."""
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The id of the specification."""
        return self.spec.id


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a study runs; none of it decides an outcome."""

    out: str = "results/local"
    device: str = "auto"
    workers: int = 0
    """Worker processes; 0: as many as cores and devices allow (`launchers.limits`)."""
    plugins: tuple[str, ...] = ()
    cache_gib: float = 20.0
    eval_batch: int = 256
    quiet: bool = False
    compile: str = "auto"
    """`off`; `blocks`: compile the frozen blocks; `steps`: also compile whole training steps of a
    pass; `auto`: `blocks` on CUDA, `off` elsewhere."""
    checkpoint: bool = False
    """Recompute frozen blocks on the way back instead of keeping their activations."""
    data_root: str = ""
    """Folder of the benchmarks' files."""
    processes: int = 0
    """Processes of one training of the track `vlm`; 0: not said, so one."""
    micro_batch: int = 0
    """Rows that a process trains at a time; 0: all that it has of a batch."""
    shard: bool = False
    """Split weights and optimiser over the processes instead of copying them."""
    cell_seconds: float = 0.0
    """Time after which a cell is ended; 0: many times what the forecast says."""


_STUDY_IDENTITY = (
    "track encoder methods tasks seeds settings budget language model mixture training".split()
)
IDENTITY = frozenset(
    {f"CellSpec.{name}" for name in CellSpec.__dataclass_fields__}
    | {f"Budget.{name}" for name in Budget.__dataclass_fields__}
    | {f"Study.{name}" for name in _STUDY_IDENTITY}
)
"""Fields that decide an outcome."""
NOT_IDENTITY = frozenset(
    {f"RunOptions.{name}" for name in ("out", "device", "workers", "plugins", "cache_gib")}
    | {"RunOptions.eval_batch", "RunOptions.quiet", "RunOptions.compile", "RunOptions.checkpoint"}
    | {f"RunOptions.{name}" for name in ("data_root", "processes", "micro_batch", "shard")}
    | {"RunOptions.cell_seconds"}
    | {
        f"Study.{name}"
        for name in ("name", "baseline", "contrasts", "margins", "note", "references")
    }
)
"""Fields that do not; every configuration field is in exactly one of the two sets (a test)."""


def reader_of(settings: Mapping[str, Setting], budget: Budget) -> str:
    """The reader of a cell: the method's own where it has one, else the budget's.

    `ridge-decoder` is a decoder whose classifier is replaced by the ridge head.
    """
    own = str(settings.get(READER) or "")
    if budget.reader == RIDGE and own.startswith("decoder"):
        return f"{RIDGE}-{own}"
    return own or budget.reader


_OF_TASK = {"task", "task_version", "data"}
"""Fields that do not decide a training of the track `vlm`."""


def _identity(spec: CellSpec) -> dict[str, Any]:
    """The specification as JSON values, without fields of later schemas at their default."""
    values = hashed(spec) | {"settings": dict(spec.settings), "budget": hashed(spec.budget)}
    return values | ({} if spec.training is None else {"training": plain_training(spec.training)})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:20]


# Fields of schema 1, hashed whatever their value.
_HASHED = frozenset(
    "track stage encoder weights method method_version settings task task_version data budget seed "
    "steps batch lrs tuning_seeds optimiser weight_decay warmup clip train_items val_items "
    "test_items resample reader reader_width query_dim precision feature_dtype image_size "
    "seeds_per_pass".split()
)


def hashed(value: Budget | CellSpec) -> dict[str, Any]:
    """The fields that enter the id.

    A field that was added after schema 1 is left out while it has its default, so that the ids of
    earlier records stay.
    """
    kind: Any = type(value)
    values = fields_of(value)
    for name, default in _later(kind):
        if values[name] == default:
            del values[name]
    return values


def fields_of(value: "Budget | CellSpec | CellRecord") -> dict[str, Any]:
    """Name and value of each field."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@cache
def _later(kind: type) -> tuple[tuple[str, object], ...]:
    """Name and default of each field that was added after schema 1."""
    return tuple((one.name, one.default) for one in fields(kind) if one.name not in _HASHED)


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that show an edit; a diverged run's NaN is allowed here."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_object(text: str) -> dict[str, Any]:
    """The object in the text; ValueError if it is truncated or holds anything else."""
    values = json_value(text)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def json_value(text: str) -> Any:
    """The value in the text; ValueError if it is truncated or nested too deep to be ours."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"truncated or not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error
