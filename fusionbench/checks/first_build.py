"""A method or a task used for the first time: one message with the file, the line and the mend.

It comes before all checks, each of which would stumble over the same mistake in its own words.
"""

import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fusionbench.api.errors import UserError
from fusionbench.api.folders import guessed
from fusionbench.api.fusion import Fusion, Method
from fusionbench.api.tasks import SPLITS, Task, TaskData, validate
from fusionbench.api.types import Fused, StackShape, Unsupported
from fusionbench.checks.run import find
from fusionbench.checks.toy import Subject, run_drawn
from fusionbench.models.encoders.card import EncoderCard
from fusionbench.registry.cards import TaskCard
from fusionbench.registry.catalog import plugged, read_catalog
from fusionbench.registry.plugins import load_encoder, load_task
from fusionbench.study.folders import PREFIX, about, task_file

_FEW = 100
"""Test examples below which a difference of ten points is inside the interval of one score."""
_TOLERANCE = 0.05
"""Between the declared chance and the share of the commonest answer."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """A task that was loaded once."""

    name: str
    sizes: str
    """Its images, answers and splits in words; empty if it cannot be loaded."""
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A line, and a line for each fault and note."""
        first = f"{self.name}: {self.sizes or 'cannot be used'}"
        rest = [f"  fault: {one}" for one in self.faults]
        return "\n".join([first, *rest, *(f"  note: {one}" for one in self.notes)])


def tasks_of(target: str, plugins: Sequence[str]) -> list[TaskCard]:
    """The tasks of a name, `folder:DIR`, or a file or folder that declares them; none for others.

    Raises UserError for images that cannot be used.
    """
    if target.startswith(PREFIX):
        file = task_file(target)
        return [card for card in read_catalog([str(file)]).tasks.values() if card.file == str(file)]
    here = Path(target).exists()
    catalog = read_catalog([*plugins, target] if here else plugins)
    if not here:
        return [catalog.tasks[target]] if target in catalog.tasks else []
    place = Path(target).resolve()
    cards = catalog.tasks.values()
    return [card for card in cards if Path(card.file).resolve().is_relative_to(place)]


def check_task(card: TaskCard) -> TaskReport:
    """Load a task and look at its data; whatever it raises is a fault."""
    try:
        task = load_task(card)
        data = task.load()
        validate(data)
    except UserError as error:
        return _broken(card, f"{error.message}; {error.hint}" if error.hint else error.message)
    # An author's task may raise anything.
    except (Exception, SystemExit) as error:
        return _broken(card, f"{card.file}: {type(error).__name__}: {error}")
    return TaskReport(
        name=card.name,
        sizes=about(data),
        faults=tuple(_faults(task, data)),
        notes=tuple(_notes(data)),
    )


def _broken(card: TaskCard, fault: str) -> TaskReport:
    return TaskReport(name=card.name, sizes="", faults=(fault,), notes=())


def _faults(task: Task, data: TaskData) -> Iterator[str]:
    chance = getattr(task, "chance", None)
    counts = np.bincount(data.test.answers, minlength=len(data.answers))
    most = float(counts.max() / counts.sum())
    if chance is None:
        yield f"the class has no chance; set chance = {most:.3g}, the share of the commonest answer"
    elif not 0 <= chance < 1:
        yield f"chance is {chance!r}; it must lie from 0 to below 1"
    elif type(task).score is Task.score and most > chance + _TOLERANCE:
        commonest = data.answers[int(counts.argmax())]
        yield (
            f"chance is {chance:.3g}, and the answer {commonest!r} alone scores {most:.3g} on "
            f"test; set chance = {most:.3g}"
        )
    elif type(task).score is Task.score and abs(guessed(data) - chance) > _TOLERANCE:
        score = guessed(data)
        leak = "does a question give its answer away? Else " if score > chance else ""
        yield (
            f"chance is {chance:.3g}, and who knows how often each question has each answer in "
            f"training scores {score:.3g} on test without the image; {leak}set chance = {score:.3g}"
        )


def _notes(data: TaskData) -> Iterator[str]:
    if len(data.test) < _FEW:
        points = 196 * (0.25 / len(data.test)) ** 0.5
        yield (
            f"{len(data.test)} test examples: one score is known to about {points:.0f} points "
            "either way, so small differences stay open"
        )
    seen = set(data.train.answers.tolist())
    for name in SPLITS[1:]:
        split = data.split(name)
        new = sorted({data.answers[row] for row in split.answers.tolist() if row not in seen})
        if new:
            yield f"{name}: {len(new)} answers that training does not have, such as {new[0]!r}"
    twice = Counter(zip(data.train.images.tolist(), data.train.questions, strict=True))
    if repeated := [question for (_, question), count in twice.items() if count > 1]:
        yield (
            f"train: {len(repeated)} questions are asked twice of one image, such as "
            f"{repeated[0]!r}"
        )


_MENDS = {
    "cannot assign module before Module.__init__() call": "call super().__init__(shape) first",
    "cannot assign parameters before Module.__init__() call": "call super().__init__(shape) first",
    "has no attribute 'shape'": "call super().__init__(shape) first",
    "has no attribute 'taps'": "set self.taps = ((layer,), ...) in __init__: the hidden states "
    "that forward gets",
    "Can't instantiate abstract class": "define every method that the base class lists",
    "positional argument": "the constructor is called as (shape, **settings): settings are "
    "keyword-only, written behind a *",
    "mat1 and mat2 shapes cannot be multiplied": "hidden states are [tap batch token dim], dim is "
    "shape.dim and a query has shape.query_dim",
    "size of tensor": "hidden states are [tap batch token dim]; prefix tokens are included until "
    "self.patches(tokens)",
}
"""Part of an error's text and the likely mend."""


def first_fault(subject: Subject) -> str | None:
    """What keeps a method from giving tokens on the checks' encoder; None if nothing does.

    A method that cannot run there (`Unsupported`) has no fault.
    """
    try:
        method = subject.build()
        for fault in _taps(method):
            return _at(subject.cls.__init__, fault)
        fused = run_drawn(method.eval())
    except Unsupported:
        return None
    # An author's method may raise anything.
    except Exception as error:
        return _raised(subject, error)
    for fault in _given(method, fused):
        return _at(_last(subject.cls), fault)
    return None


def first_uses(file: str) -> list[str]:
    """What keeps the methods, tasks and encoders of a plug-in file from being used once.

    Each method is built and run on the checks' encoder, each task is loaded, and each encoder
    whose weights are here reads one image.
    """
    catalog = read_catalog([file])
    found = []
    for card in catalog.methods.values():
        if card.file == file and (fault := first_fault(*find(card.name, plugins=[file]))):
            found.append(f"method {card.name}: {fault}")
    for task in catalog.tasks.values():
        if task.file == file and task.available:
            found += [f"task {task.name}: {one}" for one in check_task(task).faults]
    for encoder in plugged(catalog):
        if encoder.path == file and encoder.available:
            found += [f"encoder {encoder.name}: {one}" for one in _read_one(encoder)]
    return found


def _read_one(card: EncoderCard) -> Iterator[str]:
    """What is wrong with the hidden states that an encoder makes of one grey image."""
    try:
        encoder = load_encoder(card)
        images = torch.full((1, card.size, card.size, 3), 128, dtype=torch.uint8)
        states = encoder.hidden_states(images)
    # An author's encoder may raise anything.
    except Exception as error:
        yield f"{card.path}: {type(error).__name__}: {error}"
        return
    if not all(torch.isfinite(one).all() for one in states):
        yield f"{card.path}: its hidden states are not finite"


def _taps(method: Method) -> Iterator[str]:
    """What is wrong with the declared hidden states."""
    if not isinstance(method, Fusion):
        return
    if not hasattr(method, "taps"):
        mend = _MENDS["has no attribute 'taps'"]
        yield f"{type(method).__name__} has no attribute 'taps'; {mend}"
        return
    for tap in method.taps:
        if not isinstance(tap, tuple) or not all(isinstance(one, int) for one in tap):
            yield f"self.taps holds {tap!r}; each tap is a tuple of integers: ((3,), (7,))"
        elif not all(map(method.shape.has, tap)):
            yield _outside(tap, method.shape)


def _outside(tap: tuple[int, ...], shape: StackShape) -> str:
    return (
        f"tap {tap}: hidden states are 0 (embeddings) to shape.layers, which is {shape.layers} on "
        "this encoder; shape.layer(-2) counts from the end, self.paper_taps('3,18,23') maps a "
        "paper's layers"
    )


def _given(method: Method, fused: Fused) -> Iterator[str]:
    """What is wrong with the result of the forward pass."""
    shape = list(fused.tokens.shape)
    if len(shape) != 3:
        yield f"tokens are {shape}, not [batch token width]; keep the axis of tokens"
    elif shape[2] != method.out_dim:
        yield (
            f"tokens are {shape[2]} wide and self.out_dim is {method.out_dim} on this encoder "
            f"(width {method.shape.dim}); set self.out_dim to the width, "
            f"{_as_multiple(shape[2], method.shape.dim)}, in __init__"
        )
    elif fused.tokens.dtype != torch.float32:
        yield (
            f"tokens are {fused.tokens.dtype}, and the hidden states that forward got are "
            "torch.float32; keep their type, as x.to(hidden.dtype) does"
        )
    elif not torch.isfinite(fused.tokens).all():
        yield "tokens are not finite; look for a division by zero, a logarithm or a root"
    elif _detached(method, fused):
        yield (
            "no parameter gets a gradient from the tokens; remove detach(), no_grad() and .data "
            "between the parameters and what forward returns"
        )


def _detached(method: Method, fused: Fused) -> bool:
    """Whether a method has parameters to train, and nothing that it returns depends on them."""
    values = [fused.tokens, *(one.values for one in fused.injections), *fused.losses.values()]
    values += [] if fused.summary is None else [fused.summary]
    trained = any(parameter.requires_grad for parameter in method.parameters())
    inside = fused.patches or getattr(method, "adapts", False)
    return trained and not inside and not any(value.requires_grad for value in values)


def _as_multiple(width: int, dim: int) -> str:
    times, rest = divmod(width, dim)
    return str(width) if rest else f"{times} * shape.dim"


def _last(cls: type[Method]) -> Callable[..., object]:
    """The function that gives the tokens."""
    return cls.forward if issubclass(cls, Fusion) else getattr(cls, "finish", cls.forward)


def _raised(subject: Subject, error: Exception) -> str:
    """The error's place in the author's file, its text, and the mend."""
    file = Path(inspect.getsourcefile(subject.cls) or "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == file]
    text = " ".join(str(error).split())
    mend = next((mend for part, mend in _MENDS.items() if part in text), "")
    said = f"{type(error).__name__}: {text}" + (f"; {mend}" if mend else "")
    if own:
        return f"{file}:{own[-1].lineno}: {said}"
    # No line of the file raised it: what forward gave is no `Fused`, or the class cannot be made.
    if isinstance(error, TypeError) and "return Fused" in text:
        return _at(_last(subject.cls), text)
    return _at(subject.cls.__init__, said)


def _at(function: Callable[..., object], text: str) -> str:
    """The text behind the file and line of a function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: {text}" if code else text
