"""One JSON line for each test that injects a fault: the source of docs/reliability.md.

A test names its fault with the marker `fault(group, what, then)`: `then` is what it requires. A
test that injects several calls the fixture `injected(count, note)`.
"""

import json
import os
import subprocess
import time
from pathlib import Path

VARIABLE = "FUSIONBENCH_FAULTS"
"""Names the file that the lines are appended to; without it nothing is written."""


def note_fault(item):
    """Keep the fault of a collected test with what its report carries."""
    marker = item.get_closest_marker("fault")
    if marker is not None:
        group, what, then = marker.args
        slow = item.get_closest_marker("slow") is not None
        item.user_properties.append(("fault", [group, what, then, slow]))


class FaultLines:
    """Writes the lines; with pytest-xdist, in the process that collects the reports."""

    def __init__(self, file):
        self.file = Path(file)
        told = ["git", "describe", "--always", "--abbrev=8", "--exclude=*"]
        here = Path(__file__).parent
        self.commit = subprocess.run(
            told, cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()

    def pytest_runtest_logreport(self, report):
        told = dict(report.user_properties)
        # A test that was skipped or broke while it was set up has no call.
        if "fault" not in told or (report.when != "call" and report.passed):
            return
        group, what, then, slow = told["fault"]
        line = {
            "test": report.nodeid, "group": group, "fault": what, "then": then, "slow": slow,
            "injections": told.get("injections", 1), "note": told.get("note", ""),
            "outcome": report.outcome, "commit": self.commit,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        with self.file.open("a") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def lines_of(config):
    """What writes the lines of this run, if it is asked for."""
    file = os.environ.get(VARIABLE)
    return FaultLines(file) if file and not hasattr(config, "workerinput") else None
