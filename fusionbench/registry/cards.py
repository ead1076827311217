"""Cards of methods, tasks, benchmarks and plug-in encoders: facts known without an import."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fusionbench.api.register import Setting
from fusionbench.api.sources import Needs
from fusionbench.records.cell import QUESTION, READER
from fusionbench.records.yaml_files import parse_section

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def arxiv_number(text: str) -> str:
    """The first number after `arXiv:` in a text; empty without one."""
    found = _ARXIV.search(text)
    return found[1] if found else ""


@cache
def paper_titles() -> Mapping[str, str]:
    """Title of every paper that a built-in method cites, by arXiv number."""
    text = (files("fusionbench.registry") / "titles.yaml").read_text(encoding="utf-8")
    return parse_section(text, "titles.yaml", "titles", hint="a title under its arXiv number")


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """A method under one name."""

    name: str
    family: str
    variant: str
    """The suffix after `family-`; empty for the family's own name."""
    version: int
    settings: Mapping[str, Setting]
    """Complete: the constructor's defaults with the variant's changes."""
    changes: Mapping[str, Setting]
    """Settings of the variant; a setting given for the family does not override them."""
    in_encoder: bool
    needs_query: bool
    reads_answers: bool
    control: str
    in_all: bool
    representative: bool
    """Shown where each family has one row."""
    reader: str
    """Its reader; empty: the study's."""
    question: str
    """`shuffled`, or empty: the question of the example."""
    tries: str
    """Setting chosen on val among the encoder's layers; empty: none."""
    facts: Mapping[str, str | int | bool]
    """Paper, year, parity, ... with the variant's details."""
    switches: Mapping[str, tuple[Setting, ...]]
    """Values that an ablation tries for a setting, "off" first."""
    idle: tuple[tuple[Mapping[str, Setting], tuple[str, ...]], ...]
    """Settings and the switches without effect under them."""
    module: str
    """Dotted name, or the path of a plug-in file."""
    cls: str
    file: str
    source: str
    """`built-in`, the plug-in's distribution and version, or its path."""
    about: str = ""
    """What it is, in one line."""

    @property
    def as_run(self) -> Mapping[str, Setting]:
        """Settings of its cells, including its own reader and question."""
        own = {READER: self.reader, QUESTION: self.question}
        return {**self.settings, **{key: value for key, value in own.items() if value}}

    @property
    def idea(self) -> str:
        """What it is in at most eight words; its one-line description where it declares none."""
        return str(self.facts.get("idea") or self.about)

    @property
    def title(self) -> str:
        """Title of its paper; empty where the number is not a known one."""
        return paper_titles().get(arxiv_number(str(self.facts.get("paper", ""))), "")


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """A task."""

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
    """Packages of `needs` that are not installed."""
    module: str
    cls: str
    file: str
    source: str
    about: str = ""
    """What it is, in one line."""
    reads: tuple[str, ...] | None = None
    """Files and folders that it reads; None where it does not say."""

    @property
    def available(self) -> bool:
        """Whether the data is on this machine."""
        return not self.missing


@dataclass(frozen=True, kw_only=True)
class BenchmarkCard:
    """A benchmark: evaluated in the track `vlm`, never trained on."""

    name: str
    version: int
    family: str
    group: str
    in_suite: bool
    needs: Needs
    """The forms of its data; `api.sources.find_source` looks for them below a data root."""
    module: str
    cls: str
    file: str
    source: str
    about: str = ""
    """What it is, in one line."""


@dataclass(frozen=True, kw_only=True)
class PluggedEncoder:
    """Declaration of a plug-in encoder; `registry.catalog` makes its card."""

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


Card = MethodCard | TaskCard | BenchmarkCard | PluggedEncoder


_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_LONGEST = 200
"""Characters of a formula."""
_HIGHEST_POWER = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of an encoder and a language model."""

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
    """Value of a formula of integers, `+ - * // **` and names; ValueError for anything else.

    It counts what a method trains in addition to LLaVA's one-layer projector (D H + H + H^2 + H):
    the fusion, and further input columns of the projector. Names: D width, L blocks, N patches,
    H width of the language model, M its MLP, Q width of the question (`query_width` or H), and the
    method's integer settings.
    """
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
        raise ValueError(f"{formula!r} is not a formula; for example 2*D*H + D//reduction")
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
