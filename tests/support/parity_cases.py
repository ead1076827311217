"""Numbers recorded from official implementations, and how a replay is compared with them.

A case names its inputs `input.*`, weights `weight.*`, results `output.*` and gradients `grad*.*`,
in a file of its own or, as `<id>/input.*`, in a file of several cases. Sizes, layers and strings
come from the case, so that another folder of the same form passes too.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

SHIPPED = Path(__file__).parent.parent / "methods" / "parity"
FOLDER = Path(os.environ.get("FUSIONBENCH_PARITY_DIR", SHIPPED))


@dataclass(frozen=True)
class Case:
    """One entry of the manifest and its tensors."""

    facts: Mapping[str, Any]
    folder: Path = FOLDER

    @property
    def id(self) -> str:
        return self.facts["id"]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.facts["config"]

    @property
    def symbol(self) -> str:
        """What was run: the official function or class."""
        return self.facts["official"]["symbol"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.folder / self.facts["file"], framework="pt") as file:
            names, start = list(file.keys()), f"{self.id}/"
            own = [name for name in names if name.startswith(start)]
            return {name.removeprefix(start): file.get_tensor(name) for name in own or names}

    def under(self, group: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `group.`, without that."""
        start = f"{group}."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs; the float ones can be differentiated."""
        found = self.under("input")
        return {k: v.requires_grad_(v.is_floating_point()) for k, v in found.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.under("weight")


Replay = Callable[[Case], Mapping[str, Tensor]]
"""Gives every `output.*` and `grad*.*` of a case."""


def cases(folder: Path = FOLDER) -> list[Case]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return [Case(facts, folder) for facts in manifest["cases"]]


def mismatches(case: Case, replayed: Mapping[str, Tensor]) -> list[str]:
    """What differs by more than the case's tolerance, or is missing; empty if all is equal."""
    recorded = {k: v for k, v in case.tensors.items() if k.startswith(("output.", "grad"))}
    missing = [f"{name} was not replayed" for name in recorded if name not in replayed]
    both = [name for name in recorded if name in replayed]
    told = [_difference(case, name, recorded[name], replayed[name]) for name in both]
    return missing + [text for text in told if text]


def _difference(case: Case, name: str, recorded: Tensor, got: Tensor) -> str:
    if recorded.shape != got.shape:
        return f"{name}: shape {tuple(got.shape)} instead of {tuple(recorded.shape)}"
    if not recorded.is_floating_point():
        return "" if torch.equal(recorded, got) else f"{name}: not equal"
    apart = (recorded - got).abs().max().item() if recorded.numel() else 0.0
    scale = recorded.abs().max().item() if recorded.numel() else 0.0
    kind = "output" if name.startswith("output.") else "grad"
    allowed = case.facts["tolerance"][kind] * max(scale, _floor(case, kind)) if scale else 0.0
    return "" if apart <= allowed else f"{name}: off by {apart:.3g}, allowed {allowed:.3g}"


def _floor(case: Case, kind: str) -> float:
    """The rule's words give the floors: "floor = 1e-2 for output.*, 1e-12 for grad*.*"."""
    found = re.search(rf"([\d.e+-]+) for {kind}", case.facts["tolerance"]["rule"])
    if found is None:
        raise ValueError(f"{case.id}: the tolerance's rule names no floor for {kind}")
    return float(found[1])


def outputs(**named: Tensor) -> dict[str, Tensor]:
    """Results under their recorded names."""
    return {f"output.{name}": value.detach() for name, value in named.items()}


def gradients(loss: Tensor, of: Mapping[str, Tensor], *, group: str = "grad") -> dict[str, Tensor]:
    """Gradients under their recorded names; zero where the loss does not depend on a tensor."""
    found = torch.autograd.grad(loss, list(of.values()), retain_graph=True, allow_unused=True)
    filled = [
        torch.zeros_like(value) if grad is None else grad
        for grad, value in zip(found, of.values(), strict=True)
    ]
    return {f"{group}.{name}": grad for name, grad in zip(of, filled, strict=True)}


def as_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float inputs under the names that their gradients bear."""
    return {f"input.{name}": value for name, value in inputs.items() if value.requires_grad}


def trainable(weights: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The weights whose official names start so, ready to be differentiated."""
    found = {name: value for name, value in weights.items() if name.startswith(start)}
    return {name: value.requires_grad_() for name, value in found.items()}


def project(tokens: Tensor, projector: Mapping[str, Tensor]) -> Tensor:
    """LLaVA's `mlp2x_gelu` from four weights in the order of their names: 0.bias, 0.weight, …"""
    inner_bias, inner, outer_bias, outer = (projector[name] for name in sorted(projector))
    return F.linear(F.gelu(F.linear(tokens, inner, inner_bias)), outer, outer_bias)


def tapped(states: Tensor, taps: tuple[tuple[int, ...], ...]) -> Tensor:
    """What the engine gives to a fusion: each tap's states, averaged."""
    return torch.stack([states[list(tap)].mean(dim=0) for tap in taps])
