"""Every row that needs a GPU, in calls of less than ten minutes; each goes on where one ended.

    python benchmarks/all_gpu.py --packed gpu.json            # until it says that all is done
    python benchmarks/all_gpu.py --packed gpu.json --unpack   # elsewhere: results and profiles
    python benchmarks/targets.py                              # the page of results
    fusionbench report results/quick                          # the costs in the report

`--device cpu --tiny` rehearses the whole of it in sizes that say nothing. What was measured is
packed into one JSON file with the device's name; a call that finds the file takes it up. A script
that failed is named, tried once more, and hinders no other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_work import tasks

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LIMIT_BYTES = 16 * 2**20
RESUMED = ("profile-all", "whole_study")
_ERROR_CHARACTERS = 2000
_TRIES = 2


def main() -> None:
    """Run what is left, as far as the minutes reach."""
    asked = _arguments()
    packed = json.loads(asked.packed.read_text()) if asked.packed.exists() else _nothing(asked.tiny)
    if asked.unpack:
        if packed["tiny"] and asked.results == RESULTS:
            raise SystemExit("a rehearsal (--tiny) measures nothing: name --results and --profiles")
        unpack(packed, asked.results, asked.profiles)
        return
    if packed["tiny"] != asked.tiny:
        raise SystemExit(
            f"{asked.packed} was written {'with' if packed['tiny'] else 'without'} --tiny"
        )
    work = tasks(asked.device, tiny=asked.tiny)
    deadline = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        unpack(packed, home / "results", home)
        for name, (minutes, arguments) in work.items():
            left = (deadline - time.monotonic()) / 60
            if _over(name, packed, asked.only):
                continue
            # What goes on where it ended may use whatever is left; the rest needs its time.
            if left < (min(minutes, 1.5) if name in RESUMED else min(minutes, 4)):
                continue
            # One that takes half as long again as it may would take the time of all behind it.
            most = left if name in RESUMED else min(left, 1.5 * max(minutes, 1))
            _run(name, arguments, home, 60 * most, packed)
            pack(packed, home, asked.packed)
    missing = [name for name in work if name not in packed["done"]]
    print(f"left: {', '.join(missing)}" if missing else "all is done")
    for name, text in packed["failed"].items():
        print(f"failed: {name}: {text.strip().splitlines()[-1] if text.strip() else 'no output'}")


def _over(name: str, packed: dict, only: Sequence[str]) -> bool:
    """Done, not asked for, or failed twice and not asked for by name."""
    if name in packed["done"] or (only and name not in only):
        return True
    return packed["tries"].get(name, 0) >= _TRIES and name not in RESUMED and not only


def _run(name: str, arguments: list[str], home: Path, seconds: float, packed: dict) -> None:
    """One piece of work in a process of its own; the note says how it ended."""
    packed["tries"][name] = packed["tries"].get(name, 0) + 1
    print(f"{name} ...", flush=True)
    profiles = ["--out", str(home)] if arguments[0] == "-m" else []
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    kept = {**os.environ, "BENCHMARK_RESULTS": str(home / "results"), "PYTHONPATH": path}
    try:
        ended = subprocess.run(
            [sys.executable, *arguments, *profiles], env=kept, timeout=max(30.0, seconds),
            capture_output=True, text=True, check=False, cwd=HERE.parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        packed["failed"][name] = f"not done after {seconds:.0f} s"
        return
    print(ended.stdout, flush=True)
    unfinished = list((home / "results").glob(f"{name}-*.partial"))
    if ended.returncode == 0 and not unfinished:
        packed["done"].append(name)
        packed["failed"].pop(name, None)
    elif ended.returncode:
        packed["failed"][name] = (ended.stdout + ended.stderr)[-_ERROR_CHARACTERS:]


def pack(packed: dict, home: Path, file: Path) -> None:
    """Everything that was measured, as text by file name; written whole or not at all."""
    for folder, ends in (("results", ("*.json", "*.partial")), ("profiles", ("*.json",))):
        found = [path for end in ends for path in sorted((home / folder).glob(end))]
        packed[folder] = {path.name: path.read_text() for path in found}
    text = json.dumps(packed)
    if len(text) > LIMIT_BYTES:
        raise SystemExit(f"{len(text)} bytes to pack, the limit is {LIMIT_BYTES}")
    whole = file.with_suffix(".tmp")
    whole.write_text(text)
    whole.replace(file)


def unpack(packed: dict, results: Path, profiles: Path) -> None:
    """The files as the scripts wrote them."""
    for folder, names in (
        (results, packed["results"]),
        (profiles / "profiles", packed["profiles"]),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in names.items():
            (folder / Path(name).name).write_text(text)


def _nothing(tiny: bool) -> dict:
    return {"done": [], "failed": {}, "tries": {}, "results": {}, "profiles": {}, "tiny": tiny}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--packed", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="Of this call.")
    parser.add_argument("--only", nargs="+", default=[], help="Some of the work, by name.")
    parser.add_argument("--tiny", action="store_true", help="Rehearse all of it on a CPU.")
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--profiles", type=Path, default=HERE.parent / "results" / "quick")
    return parser.parse_args()


if __name__ == "__main__":
    main()
