"""Profiles on disk: read back as written, refused when edited, and read without torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fusionbench.records.cost import Conditions, CostRecord, Spread, read, write

CONDITIONS = Conditions(
    method="mema", method_version=1, settings={"reduction": 4, "layers": (1, 2)}, encoder="nano",
    weights="w", image_size=32, width=64, mode="train", batch=8, dtype="float32", device="a CPU",
)  # fmt: skip
RECORD = CostRecord(
    conditions=CONDITIONS, label="mema", layers=8, dim=96, tokens=17, in_encoder=True,
    parameters={"fusion": 5, "projector": 7, "over_projector": 5}, tokens_out=16,
    latency_ms=Spread(median=2.0, q1=1.5, q3=2.5, blocks=30), throughput=4000.0,
)  # fmt: skip


def test_a_profile_comes_back_as_it_was_written(tmp_path):
    path = write(tmp_path, RECORD)
    assert path == tmp_path / "profiles" / f"{RECORD.id}.json"
    assert list(read(tmp_path)) == [RECORD]


def test_an_edited_profile_is_named_and_left_out(tmp_path):
    path = write(tmp_path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"throughput": 9000.0}))
    problems = []
    assert not list(read(tmp_path, problems))
    assert "edited" in problems[0].message and str(path) == problems[0].source


def test_a_record_of_a_later_schema_is_refused():
    with pytest.raises(ValueError, match="schema 2"):
        CostRecord.from_json(replace(RECORD, schema=2).to_json())


@pytest.mark.parametrize(
    "change",
    [{"batch": 9}, {"device": "another"}, {"compile": "default"}, {"mode": "inference"},
     {"settings": {"reduction": 2}}, {"width": 4096}, {"threads": 2}],
)  # fmt: skip
def test_other_conditions_are_another_profile(change):
    assert replace(CONDITIONS, **change).id != CONDITIONS.id


def test_profiles_are_read_without_torch():
    code = "import sys, fusionbench.records.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
