"""Decorators that declare methods, tasks, benchmarks and encoders.

A decorator returns the class unchanged and stores nothing: `fusionbench.registry` reads its literal
arguments from the source file, without importing the file (or torch).
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

Setting = bool | int | float | str | tuple[int, ...]
Kind = Literal["method", "task", "benchmark", "encoder"]
T = TypeVar("T", bound=type)


def _unchanged(cls: T) -> T:
    return cls


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
    """Declare a Fusion or InEncoderFusion.

    family          name of the method and prefix of its variants
    version         raise it when results change: it is part of every cell's identity
    variants        suffix -> changed settings: {"": {}, "no_query": {"query": False}} declares
                    `family` and `family-no_query`; without it only `family`
    control         name of the matched control (same added parameters, width and number of tokens,
                    no new information), or a sentence that starts with "none: "
    in_all          whether `--methods all` includes it, or the variants that it includes
    representative  variant shown where each family has one row; default: the plain variant, else
                    the first in `all`
    reader          reader of its cells, whatever the study's is (for methods that inject into the
                    reader's layers)
    question        "shuffled": the fusion gets the question of another image (a control)
    tries           an integer setting chosen on val among layers 1..L, with the learning rate
    switches        setting -> values that `ablate` tries instead, "off" first
    idle            (settings, switches without effect under them), e.g.
                    (({"memory": "none"}, ("query",)),)
    facts           shown by `list`: `idea`, at most eight words; by `list --long`: paper, year,
                    parity; `parameters`, a formula of the parameters added to LLaVA's projector
                    (`fusionbench.registry.cards.count`); `needs` and `identity` where they
                    differ from the class attributes; `unmatched`, in what the control differs from
                    the method, and why
    details         suffix -> facts that differ for this variant, `control` included
    """
    return _unchanged


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
    """Declare a Task.

    family    kind of task: all scenes are one kind
    group     skill: "fine" or "semantic"
    needs     importable packages that contain the data
    get       command that installs them
    encoder   encoder of its cells, instead of the study's
    in_suite  False keeps it out of the suite's mean (planted ground truth)
    """
    return _unchanged


def benchmark(
    name: str,
    *,
    version: int,
    family: str,
    group: str,
    in_suite: bool = True,
) -> Callable[[T], T]:
    """Declare a Benchmark; its class attributes name the data that it needs.

    version   raise it when prompts or scores change
    family    benchmarks of the same questions share it
    group     skill, for example "text" or "knowledge"
    in_suite  False keeps it out of the suite's mean
    """
    return _unchanged


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
    """Declare an Encoder of `layers` blocks and width `dim`, for images of `size` x `size` pixels.

    version     part of every cell's identity, as are the bytes of the weight files
    patch       side of a patch in pixels; a constructor with a keyword `image_size` accepts every
                multiple of it, one without accepts `size` only
    prefix      leading tokens that are not patches: CLS, registers
    weights     weight files in the folder of the module
    source      where the weights come from, in words
    needs, get  as for a task
    """
    return _unchanged
