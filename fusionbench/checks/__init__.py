"""The conformance kit: does a method keep the promises that a fair comparison rests on?

`check_method(target)` runs the suite on one method and gives a record per check; `each_check`
makes a pytest test of each; `fusionbench check` writes Markdown. A check that is meant to fail is
declared by the method: `expected_failures = {"batch_split": "why"}`.
"""

# Imported for what they add to the suite, in the order in which checks run.
from fusionbench.checks import contract, isolation, training, transforms  # noqa: F401
from fusionbench.checks.kit import (
    Check,
    CheckFailed,
    CheckRecord,
    CheckReport,
    CheckSkipped,
    Outcome,
    check,
    checks,
)
from fusionbench.checks.run import check_method, each_check, run_check, run_checks

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
