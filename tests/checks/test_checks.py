"""The conformance kit: it passes what is sound, and each check notices what it is there for."""

import io
import shutil

import pytest
from broken_methods import BetterThanItSays, DeadStart, Sound, SoundStepper, broken
from method_sizes import names

from fusionbench.api.errors import UserError
from fusionbench.api.types import Unsupported
from fusionbench.checks import check_method, checks, each_check
from fusionbench.checks.run import find, page, run_checks
from fusionbench.checks.toy import Subject
from fusionbench.cli.extend import check

# Four fifths of the time; the others run for every method and every mutant.
SLOW = ("compiled", "learns_signal", "random_labels")
QUICK = tuple(name for name in checks() if name not in SLOW)
# After the encoder, in it, and two that are meant to fail.
A_FEW = ("mol-layer", "mema-as_written", "tgif-leaky")

PLUGIN = """
from fusionbench.api import Fused, Fusion, method


@method("first_block", version=1, variants={"": {}, "second": {"index": 2}})
class FirstBlock(Fusion):
    def __init__(self, shape, *, index: int = 1):
        super().__init__(shape)
        self.taps = ((index,),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))
"""


@pytest.mark.few(6)
@each_check(*A_FEW)
def test_a_few_methods_of_every_kind_pass_every_check(verdict):
    verdict()


def one_of_each() -> list:
    """All names; of a method's variants the first, the others are slow."""
    first = {name.split("-")[0]: name for name in reversed(names())}.values()
    return [pytest.param(n, marks=() if n in first else pytest.mark.slow) for n in names()]


@pytest.mark.few(4)
@pytest.mark.parametrize("name", one_of_each())
def test_every_built_in_method_keeps_its_promises(name):
    report = check_method(name, only=QUICK)
    assert not report.unexpected, str(report)


@pytest.mark.slow
def test_every_built_in_method_passes_the_checks_that_take_longer():
    wrong = [check_method(name, only=SLOW) for name in names()]
    assert not [str(report) for report in wrong if report.unexpected]


@pytest.mark.few(1)
@pytest.mark.parametrize("cls", [Sound, SoundStepper])
def test_a_sound_method_passes_every_check(cls):
    report = check_method(cls)
    assert not report.unexpected, str(report)
    assert report.counts["passed"] >= len(checks()) - 1


@pytest.mark.few(6)
@pytest.mark.parametrize("cls", broken())
def test_a_broken_method_fails_the_check_made_for_it_and_no_other(cls):
    found = check_method(cls, only={*QUICK, *cls.caught_by})
    assert {record.check for record in found.unexpected} == set(cls.caught_by), str(found)


@pytest.mark.slow
@pytest.mark.parametrize("cls", broken())
def test_a_broken_method_passes_the_slow_checks_that_are_not_about_it(cls):
    found = check_method(cls, only=SLOW)
    assert {record.check for record in found.unexpected} == set(cls.caught_by) & set(SLOW)


def test_every_check_has_a_broken_method_that_it_must_notice():
    assert {name for cls in broken() for name in cls.caught_by} == set(checks())


def test_every_check_says_what_it_holds_a_method_to():
    assert all(each.promise.endswith(".") for each in checks().values())


def test_a_formula_that_is_one_parameter_off_is_noticed():
    def outcome(formula):
        subject = Subject(name="sound", cls=Sound, facts={"parameters": formula})
        (record,) = run_checks(subject, only=["parameters"]).records
        return record.outcome, record.reason

    assert outcome("D*D + D + D*H")[0] == "passed"
    assert outcome("D*D + D + D*H + 1")[0] == "failed"
    assert "trains 5243904, its formula D*D + D*H gives 5242880" in outcome("D*D + D*H")[1]


def test_an_expected_failure_keeps_the_methods_reason_and_what_was_found():
    (record,) = check_method("mema-as_written", only=["live"]).records
    assert record.outcome == "expected failure" and not record.unexpected
    assert record.reason.startswith("as written: ") and "stand still" in record.reason


def test_an_expected_failure_that_passes_is_unexpected():
    (record,) = check_method(BetterThanItSays, only=["live"]).records
    assert record.outcome == "unexpected pass" and record.unexpected


def test_a_method_that_refuses_an_encoder_in_words_is_skipped():
    class Refusing(Sound):
        def __init__(self, shape):
            raise Unsupported("only for giants")

    report = check_method(Refusing, only=QUICK)
    assert {(r.outcome, r.reason) for r in report.records} == {("skipped", "only for giants")}


def test_a_method_that_cannot_be_built_fails_and_stops_nothing():
    class Raising(Sound):
        def __init__(self, shape):
            raise KeyError("no such thing")

    report = check_method(Raising, only=QUICK)
    assert report.counts["failed"] == len(QUICK)
    assert "no such thing" in report.records[0].reason


def test_counts_tell_how_many_checks_ran():
    report = check_method(DeadStart, only=["live", "writes", "shapes"])
    counts = {outcome: count for outcome, count in report.counts.items() if count}
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert str(report).startswith("DeadStart: 1 passed, 1 failed, 1 skipped\n  live: failed: ")


def test_a_name_may_have_settings_and_a_class_takes_them():
    assert find("layer[index=3]")[0].build().taps == ((3,),)
    report = check_method(find("layer")[0].cls, settings={"index": 3}, only=["taps", "identity"])
    assert not report.unexpected
    with pytest.raises(UserError, match="class"):
        check_method("layer", settings={"index": 3})


def test_a_file_is_checked_with_all_its_variants(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    found = find(tmp_path / "mine.py")
    assert [subject.name for subject in found] == ["first_block", "first_block-second"]
    with pytest.raises(UserError, match="several"):
        check_method(tmp_path / "mine.py")


@pytest.mark.parametrize("target", ["scalar_mixx", "no/such/file.py", "scalar_mix[norn=true]"])
def test_a_target_that_means_nothing_is_a_users_error(target):
    with pytest.raises(UserError):
        check_method(target)


def test_an_unknown_check_is_a_users_error():
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        check_method("last", only=["shape"])


def test_without_a_compiler_inductor_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (record,) = check_method("last", only=["compiled"], compiler="inductor").records
    assert record.outcome == "skipped" and "C++ compiler" in record.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scalar_mix", "mema", "mmfuser"])
def test_the_kernels_of_inductor_give_the_same(name):
    (record,) = check_method(name, only=["compiled"], compiler="inductor").records
    assert record.outcome in ("passed", "skipped"), record.reason


def test_a_verdict_passes_skips_xfails_or_fails():
    def verdict(target, name):
        return each_check(target, only=[name]).args[1][0].values[0]

    verdict("last", "taps")()
    with pytest.raises(pytest.skip.Exception):
        verdict("last", "live")()
    with pytest.raises(pytest.xfail.Exception):
        verdict("mema-as_written", "live")()
    for cls in (DeadStart, BetterThanItSays):
        with pytest.raises(pytest.fail.Exception):
            verdict(cls, "live")()


def run(targets, out, only):
    stream = io.StringIO()
    code = check(targets, out=out, only=only, compiler="aot_eager", plugins=[], stream=stream)
    return code, stream.getvalue()


def test_the_command_counts_and_writes_a_page(tmp_path):
    out = tmp_path / "new" / "check.md"
    names = ["last", "mema-as_written", "mema-as_*"]
    code, said = run(names, out, ("taps", "live", "writes"))
    assert code == 0
    assert "2 methods" in said and "3 passed, 2 skipped, 1 expected failure" in said
    text = out.read_text()
    assert "2 methods, 6 checks: 3 passed, 2 skipped, 1 expected failure." in text
    assert "## Unexpected\n\nNone." in text
    assert "as written" in text


def test_the_command_fails_on_what_is_unexpected(tmp_path):
    out = tmp_path / "check.md"
    (tmp_path / "mine.py").write_text(PLUGIN.replace("((index,),)", "((index,), (index + 1,))"))
    code, said = run([str(tmp_path / "mine.py")], out, ("taps",))
    assert code == 1
    for text in (said, out.read_text()):
        assert "declares tap (2,), but no output depends on it" in text


def test_a_page_is_the_same_for_the_same_reports():
    reports = [check_method("last", only=["taps", "writes"])]
    assert page(reports) == page(reports)
    assert "|" not in page(reports).split("## Unexpected")[0]
