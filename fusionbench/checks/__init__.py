"""Conformance checks of fusion methods: shapes, isolation, training, precision, transforms.

`check_method(target)` returns a record per check, `each_check` makes each a pytest item, and
`fusionbench check` writes Markdown. A method declares checks that it fails with the reason:
`expected_failures = {"batch_split": "why"}`.
"""

# Importing a module registers its checks, in the order in which they run.
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
