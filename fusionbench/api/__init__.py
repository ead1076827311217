"""All that a method, a task, an encoder or a plug-in imports.

Names are looked up on first use: a task that asks for `Task` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionbench.api.encoders import Encoder
    from fusionbench.api.errors import one_of
    from fusionbench.api.fusion import Fusion, InEncoderFusion, Tap, anchored, matched, paper_taps
    from fusionbench.api.modules import CrossAttention, sdpa
    from fusionbench.api.register import encoder, method, task
    from fusionbench.api.seeding import stream
    from fusionbench.api.tasks import Example, ScoredItems, Split, Task, TaskData
    from fusionbench.api.types import Fused, Injection, ReaderPatch, StackShape, Unsupported
    from fusionbench.readers.decoder import GatedMLP, Heads
    from fusionbench.registry.trained import trained_parameters

_HOME = {
    "CrossAttention": "api.modules",
    "Encoder": "api.encoders",
    "Example": "api.tasks",
    "Fused": "api.types",
    "Fusion": "api.fusion",
    "InEncoderFusion": "api.fusion",
    "GatedMLP": "readers.decoder",
    "Heads": "readers.decoder",
    "Injection": "api.types",
    "ReaderPatch": "api.types",
    "ScoredItems": "api.tasks",
    "Split": "api.tasks",
    "StackShape": "api.types",
    "Tap": "api.fusion",
    "Task": "api.tasks",
    "TaskData": "api.tasks",
    "Unsupported": "api.types",
    "anchored": "api.fusion",
    "encoder": "api.register",
    "matched": "api.fusion",
    "method": "api.register",
    "one_of": "api.errors",
    "paper_taps": "api.fusion",
    "sdpa": "api.modules",
    "stream": "api.seeding",
    "task": "api.register",
    "trained_parameters": "registry.trained",
}

__all__ = [
    "CrossAttention",
    "Encoder",
    "Example",
    "Fused",
    "Fusion",
    "InEncoderFusion",
    "GatedMLP",
    "Heads",
    "Injection",
    "ReaderPatch",
    "ScoredItems",
    "Split",
    "StackShape",
    "Tap",
    "Task",
    "TaskData",
    "Unsupported",
    "anchored",
    "encoder",
    "matched",
    "method",
    "one_of",
    "paper_taps",
    "sdpa",
    "stream",
    "task",
    "trained_parameters",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"fusionbench.api has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fusionbench.{_HOME[name]}"), name)
