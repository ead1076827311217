"""Cost profiles: `profiles/<id>.json`, one file per (method, encoder, device, conditions).

Free of torch. Quantities are of the encoder with the method and its projector, and of the bare
encoder with the projector of one layer; the cost of a method is the difference, `over_encoder`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusionbench.api.errors import Problem
from fusionbench.records.cell import Setting, canonical, checksum, json_object
from fusionbench.records.files import content, why, write_atomic
from fusionbench.records.schema import check_types

Mode = Literal["inference", "train"]


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Options of `fusionbench profile`, without the methods."""

    encoder: str
    image_size: int = 0
    """Pixels; 0: the encoder's own."""
    width: int = 4096
    """Of the projector's output and of the question's vector."""
    batch: int = 32
    dtype: str = "fp32"
    device: str = "auto"
    mode: Mode = "inference"
    compile: str = "off"
    language_model: bool = False
    """A 7B language model with random weights behind encoder and projector."""
    blocks: int = 30
    """Timed blocks."""


SCHEMA = 1
FOLDER = "profiles"
PROFILES = "profiles.jsonl"
"""The file of all profiles in the compact form."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What was measured and how; profiles of equal conditions are comparable."""

    method: str
    method_version: int
    settings: Mapping[str, Setting]
    """Complete: defaults filled in."""
    encoder: str
    weights: str
    """Fingerprint of the encoder's weights; `random` where only its shape matters."""
    image_size: int
    width: int
    """Of the projector's output: 4096 in LLaVA-1.5."""
    mode: Mode
    """`train`: forward, backward and optimiser step of fusion and projector, with the encoder's
    forward pass, uncached. `inference`: forward."""
    batch: int
    dtype: str
    device: str
    """The device's product name, or `meta`: counted, not run."""
    compile: str = "off"
    """`off`, or the mode of `torch.compile`."""
    language_model: bool = False
    """True: the timed pass includes a 7B language model with random weights."""
    threads: int = 1
    """CPU threads; 1 on a GPU."""

    @property
    def id(self) -> str:
        """20 hexadecimal digits of the SHA-256 of all conditions."""
        values = asdict(self) | {"settings": dict(self.settings)}
        return hashlib.sha256(canonical(values).encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Quartiles over timed blocks."""

    median: float
    q1: float
    q3: float
    blocks: int


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """Result of one profile. `None`: not measured under these conditions."""

    conditions: Conditions
    label: str
    """The method's name with changed settings, as in a cell's record."""
    layers: int
    dim: int
    tokens: int
    """Tokens of one hidden state, prefix included."""
    in_encoder: bool
    parameters: Mapping[str, int]
    """Trainable: `fusion`, `projector`, and `over_projector`: fusion and projector together minus
    the projector of one layer, as papers count. Frozen: `encoder`."""
    tokens_out: int
    """Visual tokens that reach the language model."""
    flops_encoder: int | None = None
    """Of one image through the bare encoder and the projector of one layer; 2 per multiply-add."""
    flops_over_encoder: int | None = None
    """Of one image: what the method adds, its wider projector included, without the language model.
    Negative: its projector sees fewer tokens."""
    flops_backward_over_encoder: int | None = None
    """Of one image in training; of the encoder itself where gradients pass through it."""
    flops_language_model_over: int | None = None
    """Of one image: additional cost of its visual tokens, and of the method inside the layers, in
    the prefill of a 7B language model."""
    latency_ms: Spread | None = None
    """A batch with the method."""
    latency_encoder_ms: Spread | None = None
    """A batch without it, timed alternately."""
    latency_over_encoder_ms: Spread | None = None
    """Differences of neighbouring blocks."""
    throughput: float | None = None
    """Images per second with the method, from the median."""
    throughput_encoder: float | None = None
    peak_memory_bytes: int | None = None
    """Above the memory allocated before the call."""
    peak_memory_over_encoder_bytes: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Packages, driver, clocks, attention kernels and time of the measurement."""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The id of the conditions."""
        return self.conditions.id

    def to_json(self) -> str:
        """One line of JSON with the id and a checksum that shows an edit."""
        values = {"id": self.id} | asdict(self)
        return json.dumps(values | {"checksum": checksum(values)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "CostRecord":
        """Read a profile; ValueError if it is none, has a newer schema, or was edited."""
        values = json_object(text)
        edited = values.pop("checksum", None) != checksum(values)
        claimed = values.pop("id", None)
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema {values.get('schema')!r}, this version reads {SCHEMA}")
        try:
            record = _record(values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a profile: {error}") from error
        check_types(record, skip=("conditions", "parameters"))
        check_types(record.conditions)
        if edited or record.id != claimed:
            raise ValueError("edited: the checksum does not match the contents")
        return record


def write(folder: Path, record: CostRecord) -> Path:
    """Store a profile in place of an earlier one of the same conditions; returns its file."""
    path = folder / FOLDER / f"{record.id}.json"
    write_atomic(path, record.to_json().encode())
    return path


def profile_files(folder: Path) -> list[Path]:
    """The files of a folder of results that hold profiles, the compact form's first."""
    compact = folder / PROFILES
    return [*([compact] if compact.exists() else []), *sorted((folder / FOLDER).glob("*.json"))]


def read(folder: Path, problems: list[Problem] | None = None) -> Iterator[CostRecord]:
    """All profiles of a folder of results, by id; unreadable ones are added to `problems`.

    A profile in a file of its own replaces one of the compact form.
    """
    found: dict[str, CostRecord] = {}
    for path in profile_files(folder):
        for source, record in _profiles(path):
            if isinstance(record, CostRecord):
                found[record.id] = record
            elif problems is not None:
                said = f"ignored: {why(record)}"
                problems.append(Problem(source=source, message=said))
    yield from (found[name] for name in sorted(found))


def _profiles(path: Path) -> Iterator[tuple[str, CostRecord | Exception]]:
    """Each profile of a file, or why it cannot be read; one line's error stays with that line."""
    try:
        lines = content(path).decode("utf-8", "replace").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        yield str(path), error
        return
    for number, line in enumerate(lines, 1):
        source = f"{path}:{number}" if path.name == PROFILES else str(path)
        try:
            record = CostRecord.from_json(line)
            if path.name not in (PROFILES, f"{record.id}.json"):
                raise ValueError(f"holds the profile of other conditions ({record.id})")
            yield source, record
        except ValueError as error:
            yield source, error


def _record(values: dict[str, Any]) -> CostRecord:
    conditions = dict(values["conditions"])
    conditions["settings"] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in conditions["settings"].items()
    }
    values["conditions"] = Conditions(**conditions)
    for name in ("latency_ms", "latency_encoder_ms", "latency_over_encoder_ms"):
        values[name] = values[name] and Spread(**values[name])
    values["notes"] = tuple(values["notes"])
    return CostRecord(**values)
