"""A training step recorded once as a CUDA graph, and replayed in every step that follows.

A step of small models may take a GPU less time than Python takes to launch it. A graph is
launched whole, and with it the way back, the clipping and the optimiser. What is recorded must
look at no value and find its inputs at the same place each time.
"""

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Given = Tensor | float
Step = Callable[..., Tensor]
AS_IT_IS = 3
"""Steps before the recording, in which kernels are chosen and the optimiser's moments are made."""


class Recorder(Protocol):
    """How a device runs a step on given inputs, and how it records one."""

    def number(self, value: float) -> Tensor:
        """A number that lies on the device, where the next step's can be written over it."""

    def run(self, step: Step, given: tuple[Given, ...]) -> Tensor:
        """As it is."""

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """What repeats the step on whatever the inputs hold by then; the step itself may not run.

        Raises RuntimeError for a step that cannot be recorded.
        """


class Replayed:
    """A step of tensors and numbers whose shapes never change.

    A call gives back what the next call writes over. A step that cannot be recorded runs as it is,
    with a warning.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step, self._recorder = step, recorder
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *given: Given) -> Tensor:
        """One step."""
        if self._calls == AS_IT_IS:
            self._record(given)
        self._calls += 1
        if self._replay is None:
            return self._recorder.run(self._step, given)
        for mine, value in zip(self._inputs, given, strict=True):
            mine.copy_(value) if isinstance(value, Tensor) else mine.fill_(value)
        return self._replay()

    def _record(self, given: tuple[Given, ...]) -> None:
        number = self._recorder.number
        self._inputs = tuple(
            value.clone() if isinstance(value, Tensor) else number(value) for value in given
        )
        try:
            self._replay = self._recorder.record(self._step, self._inputs)
        except RuntimeError as error:
            self._inputs = ()
            warnings.warn(f"not recorded: {str(error).splitlines()[0]}", stacklevel=3)


class CudaGraphs:
    """Runs and records on one stream of its own, so that what a recording meets was made there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
        self._stream = stream(device)

    def number(self, value: float) -> Tensor:
        """In float32, as the optimiser's kernel reads a learning rate."""
        return torch.full((), value, dtype=torch.float32, device=self._device)

    def run(self, step: Step, given: tuple[Given, ...]) -> Tensor:
        """Between what was asked of the device before and what is asked of it next."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            found = step(*given)
        now.wait_stream(self._stream)
        return found

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """Nothing runs here."""
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Of this thread alone: others may pin memory for the next hidden states meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                found = step(*inputs)
        finally:
            # A recording that breaks off leaves its stream as the current one.
            torch.cuda.set_stream(now)

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay
