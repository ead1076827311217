"""What is known of a method, a task or a plugged-in encoder before it is imported."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench.api.register import Setting
from fusionbench.records.cell import QUESTION, READER


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """What is known of a method before it is imported."""

    name: str
    family: str
    variant: str
    """The suffix after `family-`; empty for the family's own name."""
    version: int
    settings: Mapping[str, Setting]
    """Complete: the constructor's defaults with the variant's changes."""
    changes: Mapping[str, Setting]
    """What the variant changes; a setting given for the family leaves these alone."""
    in_encoder: bool
    needs_query: bool
    reads_answers: bool
    control: str
    in_all: bool
    representative: bool
    """It stands for its family where there is room for one of each."""
    reader: str
    """The reader it runs with; empty: the study's."""
    question: str
    """`shuffled`, or empty: the one that is asked."""
    tries: str
    """The setting that is chosen on val among the encoder's layers; empty: none."""
    facts: Mapping[str, str | int | bool]
    """Paper, year, parity, ... with the variant's details."""
    switches: Mapping[str, tuple[Setting, ...]]
    """What an ablation tries in place of a setting, "off" first."""
    idle: tuple[tuple[Mapping[str, Setting], tuple[str, ...]], ...]
    """Settings, and the switches that can do nothing beside them."""
    module: str
    """Dotted name, or the path of a plug-in file."""
    cls: str
    file: str
    source: str
    """`built-in`, the plug-in's distribution and version, or its path."""

    @property
    def as_run(self) -> Mapping[str, Setting]:
        """The settings of its cells: with the reader and the question that are its own."""
        own = {READER: self.reader, QUESTION: self.question}
        return {**self.settings, **{key: value for key, value in own.items() if value}}


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """What is known of a task before it is imported."""

    name: str
    version: int
    family: str
    group: str
    needs: tuple[str, ...]
    get: str
    """The command that installs the data."""
    encoder: str
    """Runs on this encoder instead of the study's."""
    in_suite: bool
    missing: tuple[str, ...]
    """Packages of `needs` that are not installed here."""
    module: str
    cls: str
    file: str
    source: str

    @property
    def available(self) -> bool:
        """Whether the data is here."""
        return not self.missing


@dataclass(frozen=True, kw_only=True)
class PluggedEncoder:
    """What a plug-in declares of an encoder; `fusionbench.encoder_cards` makes its card."""

    name: str
    version: int
    layers: int
    dim: int
    patch: int
    size: int
    prefix: int
    weights: tuple[str, ...]
    """Files beside the module."""
    about: str
    """Where the weights come from, in words."""
    needs: tuple[str, ...]
    get: str
    resizable: bool
    """Whether its constructor takes `image_size`."""
    missing: tuple[str, ...]
    module: str
    cls: str
    file: str
    source: str


Card = MethodCard | TaskCard | PluggedEncoder
