"""What a benchmark found: printed as a small table, kept as JSON under the device's name."""

import argparse
import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fusionbench.registry.provenance import code_state, hardware, software

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One piece of work, done the plain way and our way in the same run."""

    target: str
    """The id of a target in `targets.py`, or a point of a scaling curve: `seeds=8`."""
    plain: float
    ours: float
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours over plain."""
        return self.ours / self.plain


def finish(
    script: str, rows: Sequence[Row], device: torch.device, *, on: Mapping[str, str] | None = None
) -> None:
    """Print the rows and write them down. `on`: the machine of records that were read."""
    machine = dict(on or hardware(str(device)))
    name = _maker(machine)
    print(f"{script} on {name}")
    for row in rows:
        print(
            f"  {row.target:34s} plain {row.plain:12.4g}  ours {row.ours:12.4g} {row.unit:12s}"
            f" ours/plain {row.ratio:6.3f}  {row.note}"
        )
    values = {
        "script": script,
        "device": name,
        "hardware": machine,
        "software": dict(software()),
        "code": dict(code_state()),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": [asdict(row) for row in rows],
    }
    path = _file(script, name)
    path.write_text(json.dumps(values, indent=1) + "\n")
    print(f"  {path}")


def results_file(script: str, device: torch.device) -> Path:
    """Where a script's rows lie for this device."""
    return _file(script, device_name(device))


def _file(script: str, name: str) -> Path:
    RESULTS.mkdir(exist_ok=True, parents=True)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{script}-{slug}.json"


def partial_results(script: str, device: torch.device) -> Path:
    """What a script has measured so far and has no row for yet."""
    return results_file(script, device).with_suffix(".partial")


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return _maker(hardware(str(device)))


def _maker(machine: Mapping[str, str]) -> str:
    return machine.get("gpu") or machine["cpu"]


def parser_of(text: str) -> argparse.ArgumentParser:
    """The options of every script: where to measure. `text` is the script's description."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=raw)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda.")
    return parser


def chosen_device(text: str) -> torch.device:
    """`auto` is the GPU if there is one."""
    here = torch.cuda.is_available()
    return torch.device(("cuda" if here else "cpu") if text == "auto" else text)
