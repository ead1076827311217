"""What is known of a method, a task or a plugged-in encoder before it is imported."""

import ast
import operator
from collections.abc import Callable, Mapping
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


# What a method trains, as a formula of the encoder's and the language model's sizes.
#
# Counted on top of LLaVA's projector of one layer (D H + H + H^2 + H), as papers do: the fusion, and
# the projector's further input columns where a method gives more than D channels. In a formula stand
# D (width), L (blocks), N (patches), H (width of the language model), M (inside its MLP), Q (width of
# the question's vector; H unless the method says `query_width`), and the method's integer settings by
# their names.
# Standard library only.


_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_LONGEST = 200
"""Characters of a formula; a longer one, or a high power, is a mistake."""
_HIGHEST_POWER = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """An encoder and a language model, as far as parameters depend on them."""

    width: int
    layers: int
    patches: int
    llm: int
    mlp: int = 11008
    """Width inside the MLP of a layer of the language model."""


CLIP_L = Sizes(width=1024, layers=24, patches=576, llm=4096)
"""CLIP ViT-L/14 at 336 pixels under a 7B language model: the papers' common setting."""


def count(
    formula: str,
    settings: Mapping[str, Setting],
    sizes: Sizes = CLIP_L,
    *,
    query_width: int = 0,
) -> int:
    """The number that a formula means. ValueError for anything but sums, products and powers."""
    names: dict[str, int] = {key: value for key, value in settings.items() if type(value) is int}
    names |= {
        "D": sizes.width,
        "L": sizes.layers,
        "N": sizes.patches,
        "H": sizes.llm,
        "M": sizes.mlp,
    }
    names |= {"Q": query_width or sizes.llm}
    try:
        tree = ast.parse(formula, mode="eval") if len(formula) <= _LONGEST else None
    except SyntaxError:
        tree = None
    if tree is None:
        raise ValueError(f"{formula!r} is no formula: write for example 2*D*H + D//reduction")
    return _value(tree.body, names, formula)


def _value(node: ast.expr, names: Mapping[str, int], formula: str) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = (_value(side, names, formula) for side in (node.left, node.right))
        if isinstance(node.op, ast.Pow) and right > _HIGHEST_POWER:
            raise ValueError(f"{formula!r}: a power above {_HIGHEST_POWER}")
        return _OPERATIONS[type(node.op)](left, right)
    known = ", ".join(sorted(names))
    raise ValueError(f"{formula!r}: cannot read {ast.unparse(node)!r}; known names: {known}")
