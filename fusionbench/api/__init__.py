"""All that a method, a task, an encoder or a plug-in imports.

Names are imported on first use: a task that imports `Task` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionbench.api.benchmarks import Answer, Asked, Benchmark, Item, Picture
    from fusionbench.api.encoders import LAYERS, Encoder
    from fusionbench.api.errors import UserError, at_least, one_of
    from fusionbench.api.folders import FolderTask
    from fusionbench.api.fusion import Fusion, InEncoderFusion, Tap, anchored, matched, paper_taps
    from fusionbench.api.modules import CrossAttention, GatedMLP, Heads, sdpa
    from fusionbench.api.register import benchmark, encoder, method, task
    from fusionbench.api.seeding import stream
    from fusionbench.api.sources import Source
    from fusionbench.api.tasks import Example, ScoredItems, Split, Task, TaskData
    from fusionbench.api.types import Fused, Injection, ReaderPatch, StackShape, Unsupported

_MODULES = {
    "benchmarks": ("Answer", "Asked", "Benchmark", "Item", "Picture"),
    "encoders": ("LAYERS", "Encoder"),
    "errors": ("UserError", "at_least", "one_of"),
    "folders": ("FolderTask",),
    "fusion": ("Fusion", "InEncoderFusion", "Tap", "anchored", "matched", "paper_taps"),
    "modules": ("CrossAttention", "GatedMLP", "Heads", "sdpa"),
    "register": ("benchmark", "encoder", "method", "task"),
    "seeding": ("stream",),
    "sources": ("Source",),
    "tasks": ("Example", "ScoredItems", "Split", "Task", "TaskData"),
    "types": ("Fused", "Injection", "ReaderPatch", "StackShape", "Unsupported"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "LAYERS",
    "Answer",
    "Asked",
    "Benchmark",
    "CrossAttention",
    "Encoder",
    "Example",
    "FolderTask",
    "Fused",
    "Fusion",
    "GatedMLP",
    "Heads",
    "InEncoderFusion",
    "Injection",
    "Item",
    "Picture",
    "ReaderPatch",
    "ScoredItems",
    "Source",
    "Split",
    "StackShape",
    "Tap",
    "Task",
    "TaskData",
    "Unsupported",
    "UserError",
    "anchored",
    "at_least",
    "benchmark",
    "encoder",
    "matched",
    "method",
    "one_of",
    "paper_taps",
    "sdpa",
    "stream",
    "task",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"fusionbench.api has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fusionbench.api.{_HOME[name]}"), name)
