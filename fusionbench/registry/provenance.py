"""Provenance of a record: code, packages, machine. No torch at import."""

import ast
import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fusionbench
from fusionbench import __version__
from fusionbench.models.encoders.card import EncoderCard
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
    return {file.name: source_hash(file) for file in _plugged(method, task, encoder)}


def plugin_code(
    method: MethodCard, task: TaskCard | BenchmarkCard, encoder: EncoderCard
) -> Mapping[str, str]:
    """The same without comments, docstrings and layout: what a change of them leaves equal."""
    return {file.name: code_hash(file) for file in _plugged(method, task, encoder)}


def _plugged(
    method: MethodCard, task: TaskCard | BenchmarkCard, encoder: EncoderCard
) -> Iterator[Path]:
    sources = [(method.source, method.file), (task.source, task.file)]
    sources.append((encoder.origin, encoder.path))
    return (Path(file) for source, file in sources if source != BUILT_IN)


def source_hash(file: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file. Raises OSError."""
    return file_hash(file)[:16]


def code_hash(file: Path) -> str:
    """16 hexadecimal digits of the code of a Python file; empty for one that does not parse.

    Comments, docstrings and layout do not count; another version of Python may give another hash.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a text alone, as a docstring is."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


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
