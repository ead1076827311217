"""Change one operator of the code at a time, and see whether a test of its folder fails.

    python benchmarks/mutation_testing.py --per-file 40

A seeded sample of changes of each file: another comparison, arithmetic or boolean operator, another
constant, a negated condition, None returned, a statement left out. The tests run in a fork with a
limit of time and stop at the first failure. One JSON line a mutant goes to
`benchmarks/results/mutation-testing.jsonl`; a mutant of it with the same source is not run again.
A survivor that somebody has looked at, and that no test can tell from the original, gets the
outcome "equivalent" and a reason, "why", by hand. benchmarks/reliability.py counts them.
"""

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutation-testing.jsonl"
TARGETS = {
    "fusionbench/records/store.py": ("tests/records",),
    "fusionbench/records/cell.py": ("tests/records",),
    "fusionbench/stats": ("tests/stats",),
    "fusionbench/checks": ("tests/checks", "tests/cli/test_plugins.py"),
}
"""Files or folders, and the tests that must notice."""
FIRST = {
    "cell": ("identity", "soundness"), "store": ("store", "soundness"),
    "factorial": ("ablation",), "tied": ("verdicts",), "groups": ("suite", "estimate"),
    "cells": ("estimate", "suite"), "crossed": ("estimate", "suite"),
}  # fmt: skip
"""Words in the names of the tests that are tried first, where they are not the module's name."""
PRELOADED = ("numpy", "pandas", "scipy.stats", "scipy.optimize", "torch", "torch.func", "pytest")
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: `number` counts the changes that are possible in the file."""

    file: str
    source: str
    """SHA-256 of the file, shortened."""
    number: int
    line: int
    kind: str
    before: str
    after: str


def mutated(node: ast.AST) -> tuple[str, ast.AST] | None:
    """The kind of change that a node allows, and the changed node."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in OTHER:
        new.ops[0] = OTHER[type(new.ops[0])]()
        return "comparison", new
    if isinstance(new, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(new.op) in OTHER:
        new.op = OTHER[type(new.op)]()
        return ("boolean" if isinstance(new, ast.BoolOp) else "arithmetic"), new
    if isinstance(new, ast.Constant):
        if isinstance(new.value, bool):
            return "constant", ast.copy_location(ast.Constant(not new.value), new)
        if isinstance(new.value, int | float):
            return "constant", ast.copy_location(ast.Constant(new.value + 1), new)
        return None
    return _of_statement(new)


def _of_statement(new: ast.AST) -> tuple[str, ast.AST] | None:
    if isinstance(new, ast.If | ast.IfExp | ast.While):
        new.test = ast.copy_location(ast.UnaryOp(ast.Not(), new.test), new.test)
        return "negated condition", new
    if isinstance(new, ast.Return) and not (
        new.value is None or (isinstance(new.value, ast.Constant) and new.value.value is None)
    ):
        return "return", ast.copy_location(ast.Return(ast.Constant(None)), new)
    if isinstance(new, ast.Raise) or (
        isinstance(new, ast.Expr) and isinstance(new.value, ast.Call)
    ):
        return "statement left out", ast.copy_location(ast.Pass(), new)
    return None


class Changes(ast.NodeTransformer):
    """Counts the possible changes of a module, and makes the one that is `wanted`."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.found = wanted, []

    def visit(self, node: ast.AST) -> ast.AST:
        """The node, changed or with its children visited."""
        change = mutated(node)
        if change is not None:
            self.found.append((getattr(node, "lineno", 0), change[0], node, change[1]))
            if len(self.found) - 1 == self.wanted:
                return ast.fix_missing_locations(change[1])
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """As usual, without types, decorators and docstrings."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(one) if isinstance(one, ast.AST) else one for one in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def mutants(file: Path, count: int, seed: int) -> list[Mutant]:
    """A seeded sample of the changes of a file, in its order."""
    text = file.read_bytes()
    changes = Changes()
    changes.visit(ast.parse(text))
    name = file.relative_to(ROOT).as_posix()
    rng = random.Random(f"{seed} {name}")
    numbers = range(len(changes.found))
    chosen = sorted(rng.sample(numbers, min(count, len(numbers))))
    found = []
    for number in chosen:
        line, kind, _, after = changes.found[number]
        before = text.decode().splitlines()[line - 1].strip()
        found.append(
            Mutant(
                file=name, source=hashlib.sha256(text).hexdigest()[:12], number=number, line=line,
                kind=kind, before=before, after=ast.unparse(after).partition("\n")[0],
            )
        )  # fmt: skip
    return found


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.file, self.tree = str(ROOT / file), tree

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        """The changed module, and no other."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(
            name, self.file, loader=self,
            submodule_search_locations=[str(Path(self.file).parent)]
            if self.file.endswith("__init__.py") else None,
        )  # fmt: skip

    def exec_module(self, module: object) -> None:
        """Run the changed code."""
        exec(compile(self.tree, self.file, "exec"), module.__dict__)  # noqa: S102


def tests_of(file: str) -> list[list[str]]:
    """Test files of the folder in two stages: those named after the module, and the others."""
    places = next(tests for start, tests in TARGETS.items() if file.startswith(start))
    words = FIRST.get(Path(file).stem, (Path(file).stem.rstrip("s"),))
    found = [
        str(one)
        for place in places
        for one in (sorted((ROOT / place).glob("test_*.py")) or [ROOT / place])
    ]
    named = [one for one in found if any(word in Path(one).stem for word in words)]
    return [stage for stage in (named, [one for one in found if one not in named]) if stage]


def tested(file: str, tree: ast.Module | None, limits: list[float]) -> tuple[str, list[float]]:
    """Run the stages of tests until one fails: killed, survived or timeout; seconds of each."""
    took = []
    for tests, limit in zip(tests_of(file), limits, strict=True):
        outcome, seconds = _stage(file, tests, tree, limit)
        took.append(seconds)
        if outcome != "survived":
            return outcome, took
    return "survived", took


def _stage(
    file: str, tests: list[str], tree: ast.Module | None, seconds: float
) -> tuple[str, float]:
    """Run tests in a fork with the module changed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
        child = os.fork()
        if child == 0:
            _run_tests(file, tests, tree, home)
        outcome = "timeout"
        while time.monotonic() - start < seconds:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                outcome = "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
                break
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if outcome == "timeout":
            os.waitpid(child, 0)
    return outcome, round(time.monotonic() - start, 1)


def _run_tests(file: str, tests: list[str], tree: ast.Module | None, home: str) -> None:
    """Never returns; the exit status is that of pytest."""
    code = 70
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if tree is not None:
            sys.meta_path.insert(0, Loader(file, tree))
        import pytest

        options = ["-q", "-x", "-m", "not slow", "-p", "no:xdist", "-p", "no:cacheprovider"]
        options += ["--basetemp", home]
        code = int(pytest.main([*options, *tests]))
    finally:
        os._exit(code)


def kept() -> Iterator[dict[str, object]]:
    """What was found before."""
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text().splitlines())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="of the repository; all targets if none is named")
    parser.add_argument("--per-file", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    places = [ROOT / one for one in options.files or TARGETS]
    files = [file for place in places for file in ([place] if place.is_file() else _code(place))]
    for name in PRELOADED:
        importlib.import_module(name)
    os.chdir(ROOT)
    told = ["git", "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(told, capture_output=True, text=True, check=False).stdout.strip()
    known = {(one["source"], one["number"]) for one in kept()}
    whole: dict[tuple[str, ...], list[float]] = {}
    for file in files:
        wanted = [
            one
            for one in mutants(file, options.per_file, options.seed)
            if (one.source, one.number) not in known
        ]
        if wanted:
            _attack(wanted, commit, whole)
    print(Counter(one["outcome"] for one in kept()))


def _code(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]


def _attack(wanted: list[Mutant], commit: str, whole: dict[tuple[str, ...], list[float]]) -> None:
    """Run the mutants of a file; `whole`: seconds of the tests of the code as it is."""
    file = wanted[0].file
    stages = tuple(" ".join(stage) for stage in tests_of(file))
    if stages not in whole:
        outcome, whole[stages] = tested(file, None, [600.0] * len(stages))
        if outcome != "survived":
            raise SystemExit(f"{file}: its tests fail as it is ({outcome}, {whole[stages]} s)")
    seconds = whole[stages]
    print(f"{file}: {len(wanted)} mutants, tests take {seconds} s", flush=True)
    for mutant in wanted:
        changes = Changes(mutant.number)
        tree = changes.visit(ast.parse((ROOT / file).read_bytes()))
        outcome, took = tested(file, tree, [3 * one + 20 for one in seconds])
        line = {**asdict(mutant), "outcome": outcome, "seconds": sum(took), "commit": commit}
        with RESULTS.open("a") as results:
            results.write(json.dumps(line, sort_keys=True) + "\n")
        print(f"  {outcome}: {mutant.line}: {mutant.before} -> {mutant.after}", flush=True)


if __name__ == "__main__":
    main()
