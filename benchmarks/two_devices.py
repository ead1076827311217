"""One study run on two devices: are the same examples answered alike?

    python benchmarks/two_devices.py results/quick results/local

The device is no part of a cell's identity, so both folders hold records of the same cells. Plain:
the share of examples that the first folder's models answer correctly. Ours: the second's. The note
says on how many examples the two agree and how far a cell's scores are apart at most. `--without`
names methods whose code has changed between the two runs.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rows import Row, finish

from fusionbench.records.cell import CellRecord
from fusionbench.records.store import Store


def cells(store: Store, without: Sequence[str]) -> dict[str, CellRecord]:
    """What was scored, by identity."""
    return {
        record.spec.id: record
        for record in store.records()
        if record.status == "done" and record.label not in without
    }


def compare(
    first: Store, second: Store, without: Sequence[str] = ()
) -> tuple[Row, Mapping[str, str]]:
    """The row, and the second folder's machine. Raises SystemExit if they share no cell."""
    here, there = cells(first, without), cells(second, without)
    shared = sorted(here.keys() & there.keys())
    if not shared:
        raise SystemExit("the two folders have no cell in common: was it one study?")
    pairs = [(first.outcomes(here[i]), second.outcomes(there[i])) for i in shared]
    plain, ours = (np.concatenate(side) for side in zip(*pairs, strict=True))
    apart = max(abs(one.mean() - other.mean()) for one, other in pairs)
    alike = sum(bool((one == other).all()) for one, other in pairs)
    note = (
        f"{len(shared)} cells, {alike} alike in every example; {(plain == ours).mean():.4%} of "
        f"{len(plain)} examples alike; scores at most {100 * apart:.2f} points apart"
    ) + (f"; without {', '.join(without)}" if without else "")
    row = Row(target="two-devices", plain=float(plain.mean()), ours=float(ours.mean()),
              unit="share correct", note=note)  # fmt: skip
    return row, there[shared[0]].provenance["hardware"]


def main() -> None:
    """Print and write the row, under the name of the second folder's device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--without", nargs="+", default=[])
    asked = parser.parse_args()
    row, machine = compare(Store.open(asked.first), Store.open(asked.second), asked.without)
    finish("two_devices", [row], torch.device("cpu"), on=machine)


if __name__ == "__main__":
    main()
