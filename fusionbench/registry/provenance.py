"""Provenance of a record: code, packages, machine. No torch at import."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fusionbench
from fusionbench import __version__
from fusionbench.encoders.card import EncoderCard
from fusionbench.records.files import file_hash
from fusionbench.registry.cards import BenchmarkCard, MethodCard, TaskCard
from fusionbench.registry.discovery import BUILT_IN

_PACKAGES = ("torch", "transformers", "timm", "numpy", "einops", "safetensors")


@cache
def code_state() -> Mapping[str, str | bool]:
    """Version, git commit and dirty flag of this package; a wheel has no commit."""
    folder = Path(fusionbench.__file__).resolve().parent.parent
    commit = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else ""
    state: dict[str, str | bool] = {"fusionbench": __version__, "commit": commit}
    if commit:
        state["dirty"] = bool(_git(folder, "status", "--porcelain"))
    return state


@cache
def software() -> Mapping[str, str]:
    """Versions of Python and of packages that affect results."""
    versions = {"python": platform.python_version(), "platform": sys.platform}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@cache
def hardware(device: str) -> Mapping[str, str]:
    """Processor, and GPU with driver for a CUDA device."""
    # Which of several equal GPUs it was decides nothing.
    kind = device.partition(":")[0]
    described = {"device": kind, "machine": platform.machine(), "cpu": _cpu_name()}
    if device.startswith("cuda"):
        import torch

        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = str(torch.version.cuda)
        described["driver"] = _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv")
    return described


def plugin_files(
    method: MethodCard, task: TaskCard | BenchmarkCard, encoder: EncoderCard
) -> Mapping[str, str]:
    """Name and hash of each plug-in's source file, which reveal an unchanged version."""
    sources = [(method.source, method.file), (task.source, task.file)]
    sources.append((encoder.origin, encoder.path))
    files = [Path(file) for source, file in sources if source != BUILT_IN]
    return {file.name: file_hash(file)[:16] for file in files}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path, *arguments: str) -> str:
    return _command("git", "-C", str(folder), *arguments)


def _command(*arguments: str) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
