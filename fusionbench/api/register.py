"""The names under which methods, tasks and encoders are known.

The decorators only note what they are given. Every argument is a literal, so that
`fusionbench.catalog` can read the same facts from the source without importing it (and torch).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Setting = bool | int | float | str | tuple[int, ...]
Kind = Literal["method", "task", "encoder"]
T = TypeVar("T", bound=type)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One registered class: a family of names that differ in a few settings."""

    kind: Kind
    family: str
    cls: type
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The decorator's other arguments."""


_registrations: dict[tuple[Kind, str], Registration] = {}


def _register(kind: Kind, family: str, facts: Mapping[str, Any]) -> Callable[[T], T]:
    def note(cls: T) -> T:
        _registrations[kind, family] = Registration(
            kind=kind, family=family, cls=cls, facts=dict(facts)
        )
        return cls

    return note


def method(  # noqa: PLR0913  (each argument is a fact about the method)
    family: str,
    *,
    version: int,
    variants: Mapping[str, Mapping[str, Setting]] | None = None,
    control: str = "",
    in_all: bool | tuple[str, ...] = True,
    representative: str = "",
    reader: str = "",
    question: str = "",
    tries: str = "",
    switches: Mapping[str, tuple[Setting, ...]] | None = None,
    idle: tuple[tuple[Mapping[str, Setting], tuple[str, ...]], ...] = (),
    details: Mapping[str, Mapping[str, str | int | bool]] | None = None,
    **facts: str | int | bool,
) -> Callable[[T], T]:
    """Register a Fusion or InEncoderFusion.

    `variants` maps a suffix to the settings it changes: {"": {}, "no_query": {"query": False}}
    registers `family` and `family-no_query`; without it only `family`. `version` is bumped when
    results change. `control` names the matched control (same budget, no new information), or
    says in a sentence why none exists. `in_all`: whether `--methods all` means it; or which of the
    variants it means. `representative` stands for the family where there is room for one of each:
    the plain variant, else the first that `all` means, unless said here. `reader` names the reader
    it runs with whatever the study's is; a method that reaches into the reader's layers needs one.
    `question` "shuffled" is a control: the fusion sees the question of another image. `tries` names
    a setting that nobody sets: it is chosen on val among layers 1..L, along with the learning rate.

    `switches` maps a setting to what `ablate` tries in its place, "off" first; `idle` lists
    settings and the switches that do nothing beside them: (({"memory": "none"}, ("query",)),).

    Further facts, for `list --long`: paper, year, parity; `parameters`, a formula of what is
    trained beside LLaVA's projector (see `fusionbench.parameters`); `needs` and `identity`, where
    the class attributes do not say it. `details` maps a variant's suffix to the facts it changes.
    """
    told = {"version": version, "control": control, "in_all": in_all, "idle": tuple(idle)}
    told |= {"representative": representative, "reader": reader, "question": question}
    axes = {"variants": variants or {"": {}}, "switches": switches or {}, "details": details or {}}
    told |= {"tries": tries} | {name: dict(values) for name, values in axes.items()}
    return _register("method", family, facts | told)


def task(  # noqa: PLR0913  (each argument is a fact about the task)
    name: str,
    *,
    version: int,
    family: str,
    group: str,
    needs: tuple[str, ...] = (),
    get: str = "",
    encoder: str = "",
    in_suite: bool = True,
) -> Callable[[T], T]:
    """Register a Task.

    `family`: siblings share it (all scenes are one family). `group`: the skill, "fine" or
    "semantic". `needs`: importable packages that bring the data, `get`: the command that installs
    them. `encoder`: runs on this encoder instead of the study's. `in_suite` False keeps the task
    out of the suite's aggregate (planted ground truth).
    """
    facts = {"version": version, "family": family, "group": group, "needs": tuple(needs)}
    return _register("task", name, facts | {"get": get, "encoder": encoder, "in_suite": in_suite})


def encoder(  # noqa: PLR0913  (each argument is a fact about the encoder)
    name: str,
    *,
    version: int,
    layers: int,
    dim: int,
    patch: int,
    size: int,
    prefix: int = 0,
    weights: tuple[str, ...] = (),
    source: str = "",
    needs: tuple[str, ...] = (),
    get: str = "",
) -> Callable[[T], T]:
    """Register an Encoder with `layers` blocks, `dim` wide, on images of `size` pixels.

    `weights`: files beside the module, whose bytes are part of every cell's identity; without any,
    `version` is all that tells one state of the encoder from another. `prefix`: leading tokens that
    are no patches. `needs`, `get`: as for a task. A constructor with a keyword `image_size` takes
    any multiple of `patch`, one without is built at `size` only.
    """
    facts: dict[str, Any] = {"version": version, "layers": layers, "dim": dim, "patch": patch}
    facts |= {"size": size, "prefix": prefix, "weights": tuple(weights), "source": source}
    return _register("encoder", name, facts | {"needs": tuple(needs), "get": get})


def registered(kind: Kind, family: str) -> Registration:
    """The registration of an imported class; KeyError if its module was not imported."""
    return _registrations[kind, family]
