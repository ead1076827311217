"""A reduced form of `benchmarks/report_size.py`: 2,400 records, their report, time and memory."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import fusionbench

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "report_size.py"
REPORT = """
import re, sys, time
from pathlib import Path
from fusionbench.report.build import ReportOptions, write_report
write_report(sys.argv[1], sys.argv[2], ReportOptions(formats=("csv", "tex")))
# Not getrusage: its maximum is inherited from the process that started this one.
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0
print(time.process_time(), int(peak) / 2**20)
"""
# 100,000 records may take 60 s and 2 GiB; starting takes 1 to 2 s and 0.15 GiB of it.
SECONDS, GIBIBYTES = 8.0, 0.3


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks travel with the checkout only")
def test_a_report_takes_less_than_a_few_milliseconds_and_kilobytes_for_each_record(tmp_path):
    found = importlib.util.spec_from_file_location("report_size", SCRIPT)
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    folder = tmp_path / "results"
    folder.mkdir()
    count = script.write_records(folder, methods=12, tasks=10, seeds=10, encoders=2, examples=128)
    assert count == 2400
    home = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(folder), str(home)], check=True, capture_output=True,
        text=True, cwd=Path(fusionbench.__file__).parent.parent,
    )  # fmt: skip
    # Time on the processor: the wall clock would measure the other tests.
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < SECONDS and gibibytes < GIBIBYTES
    assert len((home / "tables" / "main.csv").read_text().splitlines()) == 1 + 12 * 10 * 2
