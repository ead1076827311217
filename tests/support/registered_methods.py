"""Every built-in method by name, built for a toy encoder."""

import pkgutil
from importlib import import_module

import torch

from fusionbench import methods
from fusionbench.api import register as registry
from fusionbench.api.fusion import Method
from fusionbench.api.types import StackShape


def names() -> list[str]:
    """All registered names, "family-suffix"."""
    found = [
        f"{registered.family}-{suffix}" if suffix else registered.family
        for registered in registrations()
        for suffix in registered.facts["variants"]
    ]
    return sorted(found)


def build(name: str, shape: StackShape, *, seed: int = 0) -> Method:
    """The method with the settings of its name; the seed draws its initial values."""
    for registered in registrations():
        for suffix, changed in registered.facts["variants"].items():
            if name == (f"{registered.family}-{suffix}" if suffix else registered.family):
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    return registered.cls(shape, **changed)
    raise KeyError(name)


def registrations() -> list[registry.Registration]:
    for module in pkgutil.iter_modules(methods.__path__):
        if module.name.startswith("_"):
            continue
        import_module(f"fusionbench.methods.{module.name}")
    found = registry._registrations
    # Other tests register plug-ins in the same process.
    built_in = {key: r for key, r in found.items() if r.cls.__module__.startswith(methods.__name__)}
    return [r for (kind, _), r in built_in.items() if kind == "method"]
