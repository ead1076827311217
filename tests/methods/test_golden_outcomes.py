"""A method whose results change must bump its version: a short training against a stored one.

After an intended change: bump `version` in the method's file, then
`FUSIONBENCH_WRITE_GOLDEN=1 pytest tests/methods/test_golden_outcomes.py`.
"""

import json
import os
from pathlib import Path

import pytest
from toy_cells import train_cell

from fusionbench.api.types import Unsupported
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

GOLDEN = Path(__file__).parent / "golden_outcomes.json"
CATALOG = read_catalog()
METHODS = {n: c for n, c in CATALOG.methods.items() if c.source == "built-in"}
# Losses agree to this between processors and versions of torch; a wrong layer differs by 100x.
TOLERANCE = 2e-3


def stored() -> dict[str, dict[str, object]]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def losses(name: str) -> list[float] | None:
    (chosen,) = select_methods(CATALOG, [name])
    try:
        record, _ = train_cell(load_method(chosen.card), steps=5, **chosen.settings)
    except Unsupported:
        return None
    return list(record.loss)


@pytest.mark.parametrize("name", METHODS)
def test_results_change_only_with_the_version(name):
    found = losses(name)
    if os.environ.get("FUSIONBENCH_WRITE_GOLDEN"):
        values = stored() | {name: {"version": METHODS[name].version, "loss": found}}
        kept = {key: values[key] for key in sorted(values) if key in METHODS}
        GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")
    known = stored().get(name)
    assert known, f"{name} has no golden outcome yet; see the head of this file"
    if known["version"] == METHODS[name].version:
        assert found == pytest.approx(known["loss"], abs=TOLERANCE), "bump its version"
    else:
        pytest.fail("the version was bumped: write the golden outcome again")
