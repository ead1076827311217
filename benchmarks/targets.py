"""Speed targets with their scripts; running this file writes `RESULTS.md` from the measurements.

A target without a measurement is listed with the command that measures it. The measurements of one
device are joined into one file, a new one in place of an earlier one of the same script.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table."""

    id: str
    work: str
    plain: str
    wanted: str
    command: str
    floor: str
    """What no way of doing the work can go below."""


GPU = "python benchmarks/{} --device cuda"
TARGETS = (
    Target(
        id="mema-train-clip",
        work="Mema training step, CLIP-L/14-336, batch 32, bf16, adapters only",
        plain="as published: eager attention with its maps, block by block",
        wanted=">= 550 img/s and <= 10 GiB on one H100",
        command=GPU.format("mema_clip.py"),
        floor=(
            "the encoder's products, forward and back to its states: 0.76 TFLOP an image, "
            "918 images/s at the 700 TFLOP/s that they reach"
        ),
    ),
    Target(
        id="mema-memory-clip",
        work="the same step: peak memory above the start",
        plain="as published",
        wanted="<= 10 GiB",
        command=GPU.format("mema_clip.py"),
        floor="with one input kept for each block, in bf16: 0.85 GiB",
    ),
    Target(
        id="mema-inference-clip",
        work="Mema inference over the bare encoder, CLIP-L/14-336, batch 32, bf16",
        plain="the bare encoder, compiled",
        wanted="<= 1.20 of the bare compiled encoder's time",
        command=GPU.format("mema_clip.py"),
        floor="the plain way",
    ),
    Target(
        id="mema-seeds",
        work="Mema training, DINOv2-S/14 at 112 px, batch 128 a seed, reader included",
        plain="one seed after the other",
        wanted=">= 25,000 samples/s over all seeds on one H100",
        command=GPU.format("seeds_in_encoder.py"),
        floor=(
            "the encoder's products, forward and back to its states: 5.7 GFLOP a sample, "
            "123,000 samples/s at 700 TFLOP/s"
        ),
    ),
    Target(
        id="ten-seeds",
        work="ten seeds of a post-encoder method",
        plain="one seed",
        wanted="<= 2 times the time of one",
        command=GPU.format("seeds_on_features.py"),
        floor="the plain way",
    ),
    Target(
        id="scoring-seeds",
        work="scoring ten seeds of a post-encoder method on 512 examples",
        plain="one seed after the other",
        wanted="reported, no target",
        command=GPU.format("seeds_on_features.py"),
        floor="one seed",
    ),
    Target(
        id="whole-study",
        work="every method x every local task x ten seeds, DINOv2-S/14 at 112 px",
        plain="a loop over cells, extrapolated from a sample of the same run",
        wanted=">= 10 times fewer GPU seconds, <= 30 GPU minutes on one H100",
        command=GPU.format("whole_study.py"),
        floor="each image encoded once, and the products of what writes into the encoder",
    ),
    Target(
        id="quick-study",
        work="the quick study on a CPU",
        plain="a loop over cells that encodes for each cell",
        wanted=">= 2 times faster",
        command="python benchmarks/quick_study.py",
        floor="the cells without any encoding",
    ),
    Target(
        id="quick-accuracy",
        work="mean test score over the quick suite, a few methods",
        plain="28 steps, attentive reader without positions, bootstrap of 512",
        wanted=">= 66 % for the best single layer, 41.5 % before",
        command="python benchmarks/accuracy_seconds.py",
        floor="chance: 29 %",
    ),
    Target(
        id="two-devices",
        work="the quick study on a GPU, example by example",
        plain="on a CPU",
        wanted="the same answers, rounding apart",
        command="python benchmarks/two_devices.py results/quick results/local",
        floor="equal answers",
    ),
    Target(
        id="seed-loop-cpu",
        work="three seeds of a post-encoder method in one pass, one CPU thread",
        plain="a loop over seeds on cached features",
        wanted="reported, no target",
        command="python benchmarks/seeds_on_features.py --device cpu --seeds 3",
        floor="the training steps of the three seeds",
    ),
    Target(
        id="feature-loading",
        work="hidden states mapped from disk, ten seeds of a post-encoder method",
        plain="each step reads its own",
        wanted="as fast as with all of them on the device",
        command=GPU.format("feature_loading.py"),
        floor="all hidden states on the device",
    ),
    Target(
        id="encoding",
        work="images to files of hidden states, every layer, DINOv2-S/14 at 112 px",
        plain="the encoder alone, nothing kept",
        wanted="at the encoder's own speed, where the disk keeps up",
        command=GPU.format("encoding.py"),
        floor="the plain way",
    ),
    Target(
        id="llava-step",
        work="Mema training step at the size of LLaVA-1.5-7B, batch 4, bf16, adapters only",
        plain="activations of the language model's layers are kept",
        wanted="reported, no target",
        command=GPU.format("llava_step.py"),
        floor=(
            "the products of encoder and language model, forward and back: 18 TFLOP a row, "
            "39 rows/s at 700 TFLOP/s"
        ),
    ),
    Target(
        id="llava-memory",
        work="the same step: peak memory above the weights",
        plain="activations are kept",
        wanted="on one GPU of 80 GiB",
        command=GPU.format("llava_step.py"),
        floor="with one input kept for each of its 32 layers, in bf16: 0.63 GiB",
    ),
    Target(
        id="profile-twice",
        work="a profile of a method at CLIP-L/14-336, twice in a row",
        plain="the first",
        wanted="< 5 % apart on an idle GPU",
        command=GPU.format("profile_twice.py"),
        floor="0 %",
    ),
    Target(
        id="start",
        work="fusionbench --help and fusionbench list methods",
        plain="python -c pass",
        wanted="< 0.2 s for --help",
        command="python benchmarks/start_and_plan.py",
        floor="the plain way",
    ),
    Target(
        id="plan",
        work="planning 100,000 cells of which 90,000 are done",
        plain="planning them with none done",
        wanted="< 3 s",
        command="python benchmarks/start_and_plan.py",
        floor="reading the folder's list of files",
    ),
    Target(
        id="report",
        work="the report of 100,000 records, from the compact form",
        plain="from live files",
        wanted="< 30 s",
        command="python benchmarks/report_size.py",
        floor="its lines parsed as JSON, nothing else: in the note",
    ),
    Target(
        id="report-memory",
        work="the same report: memory of all its processes together",
        plain="from live files",
        wanted="< 1 GiB",
        command="python benchmarks/report_size.py",
        floor="the lines held as text: 0.07 GiB",
    ),
)


def main() -> None:
    """Join the measurements of a folder by device, then write its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE / "RESULTS.md")
    asked = parser.parse_args()
    join(asked.results)
    write(asked.results, asked.page)


def measured(results: Path) -> list[dict[str, Any]]:
    """What each script measured on each device: the newest, in the order of their names.

    A file holds one measurement, as a script writes it, or a list of them.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        held = json.loads(path.read_text())
        for one in held if isinstance(held, list) else [held]:
            name = one["script"], _slug(one["device"])
            if one.get("at", "") >= found.get(name, {}).get("at", ""):
                found[name] = one
    return [found[name] for name in sorted(found, key="-".join)]


def join(results: Path) -> None:
    """Write the measurements of each device into one file, in place of the files of scripts."""
    by_device: dict[str, list[dict[str, Any]]] = {}
    for one in measured(results):
        by_device.setdefault(_slug(one["device"]), []).append(one)
    old = set(results.glob("*.json"))
    for device, found in by_device.items():
        path = results / f"{device}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        old.discard(path)
    for path in old:
        path.unlink()


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write(results: Path, page: Path) -> None:
    """Write each target with its measurements in `results`, the curves, and `notes.md`."""
    found: dict[str, list[str]] = {}
    curves: list[str] = []
    for values in measured(results):
        for row in values["rows"]:
            text = f"{row['plain']:.4g} -> {row['ours']:.4g} {row['unit']}"
            note = f" ({row['note']})" if row["note"] else ""
            if "=" in row["target"]:
                curves.append(
                    f"| {values['script']} | {row['note'] or '–'} | {row['target']} | "
                    f"{row['plain']:.4g} | {row['ours']:.4g} | {row['unit']} | "
                    f"{values['device']} |"
                )
            else:
                found.setdefault(row["target"], []).append(f"{text}, {values['device']}{note}")
    page.write_text(_page(found, curves) + (HERE / "notes.md").read_text())


def _page(found: dict[str, list[str]], curves: list[str]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Each script measures our way and the plain way in one run, in turn. This page is written",
        "by `python benchmarks/targets.py` from `results/*.json` and `notes.md`. A number",
        "belongs to its device. The floor is what no way of doing the work can go below;",
        "operations are those of products and attention, two for a multiplication and its sum.",
        "",
        "| work | plain way | floor | target | measured: plain -> ours | command |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        measured = "<br>".join(found.get(target.id, ["not yet measured"]))
        lines.append(
            f"| {target.work} | {target.plain} | {target.floor} | {target.wanted} | {measured} | "
            f"`{target.command}` |"
        )
    lines += ["", "## Scaling", ""]
    if curves:
        lines += ["![time against each axis, with its floor](scaling.png)", ""]
        columns = ("script", "method, or what was done", "point", "plain", "ours", "unit", "device")
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *curves]
    else:
        lines.append("not yet measured: `python benchmarks/scaling.py` and the scripts above")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
