"""For a method's own tests: one pytest item per check.

from fusionbench.checks import each_check

@each_check("my_method.py")
def test_my_method_keeps_its_promises(verdict):
    verdict()
"""

from collections.abc import Callable, Collection
from typing import Any

from fusionbench.checks.find import Target, find
from fusionbench.checks.runner import chosen, run_check
from fusionbench.checks.subject import Subject
from fusionbench.checks.suite import Check


def each_check(
    *targets: Target, only: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Parametrize a test's `verdict` over methods and checks.

    Called, a verdict passes, skips, xfails with the method's reason, or fails; an expected failure
    that passes fails. Raises UserError for an unknown target or check.
    """
    import pytest

    found = [
        (subject, each) for target in targets for subject in find(target) for each in chosen(only)
    ]
    items = [
        pytest.param(_verdict(subject, each), id=f"{subject.name}-{each.name}")
        for subject, each in found
    ]
    return pytest.mark.parametrize("verdict", items)


def _verdict(subject: Subject, each: Check) -> Callable[[], None]:
    def verdict() -> None:
        import pytest

        record = run_check(each, subject)
        if record.unexpected:
            pytest.fail(f"{each.promise}\n{record.reason}", pytrace=False)
        if record.outcome == "skipped":
            pytest.skip(record.reason)
        if record.outcome == "expected failure":
            pytest.xfail(record.reason)

    return verdict
