"""The conformance kit: does a method keep the promises that a fair comparison rests on?

`check_method(target)` runs the suite on one method and gives a record per check; `each_check`
makes a pytest test of each; `fusionbench check` writes Markdown. A check that is meant to fail is
declared by the method: `expected_failures = {"batch_split": "why"}`.
"""

# Imported for what they add to the suite, in the order in which checks run.
from fusionbench.checks import (  # noqa: F401, I001
    shapes,
    extras,
    precision,
    batch,
    determinism,
    gradients,
    frozen,
    taps,
    declared,
    storage,
    compiled,
    vmapped,
    answers,
    learning,
)
from fusionbench.checks.outcome import (
    CheckFailed,
    CheckRecord,
    CheckReport,
    CheckSkipped,
    Outcome,
)
from fusionbench.checks.pytest_items import each_check
from fusionbench.checks.runner import check_method, run_check, run_checks
from fusionbench.checks.suite import Check, check, checks

__all__ = [
    "Check",
    "CheckFailed",
    "CheckRecord",
    "CheckReport",
    "CheckSkipped",
    "Outcome",
    "check",
    "check_method",
    "checks",
    "each_check",
    "run_check",
    "run_checks",
]
