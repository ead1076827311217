"""Every row that needs a GPU, in calls of less than ten minutes; each goes on where one ended.

    python benchmarks/all_gpu.py --packed gpu.json            # until it says that all is done
    python benchmarks/all_gpu.py --packed gpu.json --unpack   # elsewhere: results and profiles

What was measured is packed into one JSON file with the device's name; a call that finds the file
takes it up. A script that failed is named, tried once more by the next call, and hinders no other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 16 * 2**20
CLIP = "shape:clip-vit-l-14-336"
PROFILE = ("-m", "fusionbench", "profile", "--encoder", CLIP, "--dtype", "bf16")
FEW = "penultimate,scalar_mix,dense_connector-dci,mmfuser,mema,mema-readout"
_ERROR_CHARACTERS = 2000

# What makes each piece small enough for a CPU; of an option that is given twice the last counts.
_SHRINK = ["--shrink", "--batch", "2", "--blocks", "2"]
_NANO = ["--encoder", "nano", "--width", "32", "--batch", "2", "--blocks", "2", "--dtype", "fp32"]
_FEW_STEPS = ["--steps", "11", "--batch", "1", "--method", "dia_lstm", "--seeds", "2"]
TINY = {
    "mema_clip-default": _SHRINK,
    "mema_clip-half": _SHRINK,
    "mema_clip-inference": _SHRINK,
    "seeds_on_features": ["--steps", "2", "--methods", "scalar_mix", "--points", "2"],
    "seeds_in_encoder": _FEW_STEPS,
    "whole_study": [
        "--encoder", "nano", "--methods", "scalar_mix", "mean_max", "--tasks", "digits",
        "--seeds", "2", "--sampled", "2", "4"],
    "profile_twice": [*_NANO, "--methods", "scalar_mix"],
    "feature_loading": ["--seeds", "2", "--steps", "2", "--pool", "64"],
    "encoding": ["--images", "128"],
    "mema_clip-graphs": _SHRINK,
    "profile-all": _NANO,
    "scaling-steps": ["--methods", "scalar_mix", "--batch", "1", "--axes", "tokens", "--points", "16"],
    "scaling-rest": ["--axes", "seeds", "--points", "2"],
    "seeds_in_encoder-blocks": _FEW_STEPS,
    "seeds_in_encoder-graphs": _FEW_STEPS,
    "profile-compiled": _NANO,
    "profile-train": _NANO,
    "profile-language": [],
}  # fmt: skip


def tasks(device: str, *, tiny: bool = False) -> Mapping[str, tuple[float, list[str]]]:
    """Name of each piece of work: minutes that it may take, and its arguments."""

    def script(name: str, *more: str) -> list[str]:
        return [str(HERE / f"{name}.py"), "--device", device, *more]

    def profile(*more: str) -> list[str]:
        return [*PROFILE, "--device", device, *more]

    # The rows of the targets come first, should the machine be lent for less than all.
    found = {
        "mema_clip-default": (5, script("mema_clip", "--parts", "train", "--ways", "default")),
        "mema_clip-half": (8, script("mema_clip", "--parts", "train", "--ways", "half")),
        "mema_clip-inference": (5, script("mema_clip", "--parts", "inference")),
        "seeds_on_features": (5, script("seeds_on_features", "--curve")),
        "seeds_in_encoder": (9, script("seeds_in_encoder", "--seeds", "1", "10", "16")),
        "whole_study": (9, script("whole_study", "--minutes", "8")),
        "profile_twice": (4, script("profile_twice")),
        "feature_loading": (4, script("feature_loading")),
        "encoding": (3, script("encoding")),
        "mema_clip-graphs": (6, script("mema_clip", "--parts", "train", "--ways", "graphs")),
        "profile-all": (9, profile("all", "--blocks", "30", "--missing")),
        "scaling-steps": (5, script("scaling", "--axes", "tokens", "blocks")),
        "scaling-rest": (5, script("scaling", "--axes", "seeds", "methods")),
        "seeds_in_encoder-blocks": (8, script("seeds_in_encoder", "--ways", "blocks")),
        "seeds_in_encoder-graphs": (
            8, script("seeds_in_encoder", "--ways", "graphs", "--seeds", "10")),
        "profile-compiled": (9, profile(FEW, "--compile", "default", "--blocks", "15")),
        "profile-train": (8, profile(FEW, "--mode", "train")),
        "profile-language": (8, profile(FEW, "--language-model", "--batch", "8")),
    }  # fmt: skip
    if tiny:
        found = {name: (0.2, [*words, *TINY[name]]) for name, (_, words) in found.items()}
    return found


def main() -> None:
    """Run what is left, as far as the minutes reach."""
    asked = _arguments()
    packed = json.loads(asked.packed.read_text()) if asked.packed.exists() else _nothing()
    if asked.unpack:
        unpack(packed, HERE / "results", asked.profiles)
        return
    deadline = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        unpack(packed, home / "results", home)
        for name, (minutes, arguments) in tasks(asked.device).items():
            left = (deadline - time.monotonic()) / 60
            if name in packed["done"] or (asked.only and name not in asked.only):
                continue
            # What goes on where it ended may use whatever is left; the rest needs its time.
            if left < (1.5 if name in ("profile-all", "whole_study") else min(minutes, 4)):
                continue
            _run(name, arguments, home, 60 * left, packed)
            pack(packed, home, asked.packed)
    missing = [name for name in tasks(asked.device) if name not in packed["done"]]
    print(f"left: {', '.join(missing)}" if missing else "all is done")
    for name, text in packed["failed"].items():
        print(f"failed: {name}: {text.strip().splitlines()[-1] if text.strip() else 'no output'}")


def _run(name: str, arguments: list[str], home: Path, seconds: float, packed: dict) -> None:
    """One piece of work in a process of its own; the note says how it ended."""
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


def _nothing() -> dict:
    return {"done": [], "failed": {}, "results": {}, "profiles": {}}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--packed", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="Of this call.")
    parser.add_argument("--only", nargs="+", help="Some of the work, by name.")
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--profiles", type=Path, default=HERE.parent / "results" / "quick")
    return parser.parse_args()


if __name__ == "__main__":
    main()
