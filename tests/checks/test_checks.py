"""The conformance kit and the first build: what is sound passes, each mistake has its message."""

import io
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from broken_methods import BetterThanItSays, DeadStart, Sound, SoundStepper, broken
from method_sizes import names
from plugin_files import BLANK_ENCODER

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, Injection, Unsupported
from fusionbench.checks import check_method, checks, each_check, toy, training
from fusionbench.checks.first_build import first_fault
from fusionbench.checks.kit import CheckRecord, CheckReport, distance
from fusionbench.checks.run import find, page, run_checks
from fusionbench.checks.toy import TEST_ITEMS, Subject
from fusionbench.cli.extend import check
from fusionbench.registry.catalog import read_catalog

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


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("deviations", "outcome"), [(4.5, "passed"), (5, "failed")])
def test_an_accuracy_on_random_labels_far_from_chance_is_named(
    monkeypatch, side, deviations, outcome
):
    score = 0.5 + side * deviations * math.sqrt(0.25 / TEST_ITEMS)
    found = SimpleNamespace(scores=np.full(TEST_ITEMS, score))
    monkeypatch.setattr(training, "train", lambda *_: SimpleNamespace(losses=(math.log(2),) * 30))
    monkeypatch.setattr(training, "evaluate", lambda *_: found)
    (record,) = check_method(Sound, only=["random_labels"]).records
    assert record.outcome == outcome, record.reason
    assert outcome == "passed" or record.reason == f"accuracy {score:.2f} on random labels"


def test_a_method_that_cannot_be_pickled_is_told_so():
    class Holding(Sound):
        def __init__(self, shape):
            super().__init__(shape)
            self.scale = lambda values: values

    (record,) = check_method(Holding, only=["pickled"]).records
    assert record.outcome == "failed" and record.reason.startswith("cannot be pickled: ")


def test_a_page_lists_skipped_checks_by_reason_with_the_methods_or_their_number():
    record = CheckRecord(check="writes", method="one", outcome="skipped", reason="writes nothing")
    named = [replace(record, method=name) for name in "abcdef"]
    ran = replace(record, check="taps", outcome="passed", reason="")

    def skipped(*records):
        reports = [CheckReport(method=one.method, records=(one, ran)) for one in records]
        text = page(reports).split("## Skipped\n\n")[1].split("\n\n## Rules")[0]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n")[2:]]

    assert record.seconds == 0
    assert skipped(*named[:5]) == [["writes", "writes nothing", "a, b, c, d, e"]]
    assert skipped(*named) == [["writes", "writes nothing", "6 methods"]]
    assert "## Skipped\n\nNone.\n\n" in page([CheckReport(method="a", records=(ran,))])


def test_the_task_of_the_checks_plants_its_signal_and_exchanges_its_answers():
    task, other = toy.materials("planted"), toy.materials("planted", flipped=True)
    sign = 2 * np.concatenate([task.bundle.train.answers, task.bundle.test.answers]) - 1
    means = task.stack[0].double().mean(dim=1).numpy()
    apart = means[sign == 1].mean(axis=0) - means[sign == -1].mean(axis=0)
    assert np.linalg.norm(apart) == pytest.approx(2 * 2**0.5 * toy._SIGNAL, rel=0.1)
    assert np.abs(means.mean(axis=0)).max() < 0.1
    for part in ("train", "test"):
        answers = [getattr(one.bundle, part).answers for one in (task, other)]
        assert set(answers[0]) == {0, 1} and (answers[0] + answers[1] == 1).all()
    assert torch.equal(task.stack[0], other.stack[0])


def test_the_encoder_of_the_checks_embeds_the_mean_colour_of_each_patch():
    shape = replace(toy.SHAPE, dim=8, grid=(2, 3), prefix=1)
    encoder = toy.ToyEncoder(shape)
    images = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)
    images[1, :2, 2:4] = torch.tensor([255, 51, 102])
    images[1, :2, 2] = torch.tensor([255, 153, 0])
    tokens = encoder.embed(images)
    assert tokens.shape == (2, 7, 8) and not tokens[0].any()
    expected = torch.tensor([1, 0.4, 0.2]).repeat(3)[:8]
    torch.testing.assert_close(tokens[1, 2], expected)
    assert not tokens[1, [0, 1, 3, 4, 5, 6]].any()


def test_the_distance_of_outputs_is_relative_and_zero_without_elements():
    assert distance(torch.zeros(0), torch.zeros(0)) == 0
    assert distance(torch.tensor([4.0, 2.0]), torch.tensor([4.0, 1.0])) == 0.25


def test_five_of_many_parameters_that_stand_still_are_named_and_the_others_counted():
    class ManyDead(DeadStart):
        def __init__(self, shape):
            super().__init__(shape)
            for index in range(7):
                self.register_parameter(f"idle_{index}", torch.nn.Parameter(torch.ones(1)))

    (record,) = check_method(ManyDead, only=["live"]).records
    named = "left, right, idle_0, idle_1, idle_2 and 4 more"
    assert record.reason.endswith(f"these stand still: {named}")


def test_a_folder_is_checked_with_all_its_methods_and_a_bare_word_is_a_name(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN)
    assert [subject.name for subject in find(folder)] == ["first_block", "first_block-second"]
    monkeypatch.chdir(tmp_path)
    assert [subject.name for subject in find("last/")] == ["first_block", "first_block-second"]
    assert [subject.name for subject in find("last")] == ["last"]


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


class RemembersTheStart(SoundStepper):
    """Is told apart from others by what it begins with: the hidden states before block 1."""

    def start(self, tokens, query):
        return tokens

    def after_block(self, block, tokens, state):
        assert block > 1 or not torch.equal(tokens, state), "began behind block 1"
        return tokens + self.map(tokens.mean(dim=1, keepdim=True)), state


def test_a_method_in_the_encoder_starts_with_the_states_before_the_first_block():
    report = check_method(RemembersTheStart, only=["writes", "taps"])
    assert not report.unexpected, str(report)


def test_a_formula_that_is_one_parameter_off_is_noticed():
    def outcome(formula):
        subject = Subject(name="sound", cls=Sound, facts={"parameters": formula})
        (record,) = run_checks(subject, only=["parameters"]).records
        return record.outcome, record.reason

    assert outcome("D*D + D + D*H")[0] == "passed"
    assert outcome("D*D + D + D*H + 1")[0] == "failed"
    assert "trains 5243904, its formula D*D + D*H gives 5242880" in outcome("D*D + D*H")[1]


def width_of_reader():
    from fusionbench.checks.toy import READER

    return READER.width


def into(tokens, width, layer=0, when="before", through=False, axis=True):
    values = tokens.new_zeros(*tokens.shape[:2], width)
    values = values if axis else values[:, 0]
    return Injection(layer=layer, when=when, values=values, through_projector=through)


# What a method gives in place of `Sound`'s tokens alone, the check, and what it says; "" passes.
GIVEN = {
    "tokens that are not finite": (
        lambda t: {"tokens": t / 0}, "shapes", "tokens are not finite"
    ),
    "no token": (lambda t: {"tokens": t[:, :0]}, "shapes", "tokens are [1, 0, 32], declared"),
    "no axis of tokens": (lambda t: {"tokens": t[:, 0]}, "shapes", "tokens are [1, 32], declared"),
    "a token for each image": (
        lambda t: {"tokens": t[:, : len(t)]}, "shapes", "the number of tokens follows the batch"
    ),
    "half a batch": (lambda t: {"tokens": t[: 1 + len(t) // 2]}, "shapes", "[3, tokens, out_dim"),
    "a summary": (lambda t: {"summary": t.mean(1)}, "extras", ""),
    "a summary of tokens": (lambda t: {"summary": t}, "extras", "the summary is [3, 16, 32], not"),
    "a summary of one image": (
        lambda t: {"summary": t.mean(1)[:1]}, "extras", "the summary is [1, 32], not [3, width]"
    ),
    "a loss of each image": (
        lambda t: {"losses": {"gap": t.mean((1, 2))}}, "extras", "the loss 'gap' is [3], not one"
    ),
    "a trace with a gradient": (
        lambda t: {"trace": {"gate": t.mean().view(1)}}, "extras", "the trace 'gate' carries a"
    ),
    "a trace that is not finite": (
        lambda t: {"trace": {"gate": t.detach().mean().view(1) / 0}}, "extras",
        "the trace 'gate' is not finite",
    ),
    "an injection": (
        lambda t: {"injections": (into(t, width_of_reader()), into(t, 32, through=True))},
        "extras", "",
    ),
    "an injection of one width more": (
        lambda t: {"injections": (into(t, width_of_reader() + 1),)}, "extras", "an injection is [3,"
    ),
    "an injection without tokens": (
        lambda t: {"injections": (into(t, width_of_reader(), axis=False),)}, "extras",
        "an injection is [3,",
    ),
    "an injection of the projector's width": (
        lambda t: {"injections": (into(t, width_of_reader() + 1, through=True),)}, "extras",
        "tokens, 32]",
    ),
    "an injection in between": (
        lambda t: {"injections": (into(t, width_of_reader(), when="between"),)}, "extras",
        "neither before nor after: 'between'",
    ),
    "an injection behind the last layer": (
        lambda t: {"injections": (into(t, width_of_reader(), layer=99),)}, "extras",
        "reaches into reader layer 99 of 0..",
    ),
    "an injection before the first layer": (
        lambda t: {"injections": (into(t, width_of_reader(), layer=-1),)}, "extras",
        "reaches into reader layer -1 of 0..",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_method_gives_is_held_to_its_declaration(name):
    change, check_name, words = GIVEN[name]

    class Giving(Sound):
        def forward(self, hidden, query):
            tokens = self.joined(hidden, query)
            return Fused(**{"tokens": tokens, **change(tokens)})

    (record,) = check_method(Giving, only=[check_name]).records
    assert record.outcome == ("failed" if words else "passed"), record.reason
    assert words in record.reason


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        ((), "declares no hidden state"),
        (((),), "declares no hidden state"),
        (((2, 2),), "names a hidden state twice"),
        (((99,),), "is not resolved: indices are integers 0.."),
        (((1.0,),), "is not resolved"),
    ],
)
def test_taps_that_cannot_be_read_are_named(taps, words):
    class Tapping(Sound):
        def __init__(self, shape):
            super().__init__(shape)
            self.taps = taps

    (record,) = check_method(Tapping, only=["taps"]).records
    assert record.outcome == "failed" and words in record.reason


@pytest.mark.parametrize("depth", [0, 99])
def test_a_depth_outside_the_encoder_is_named(depth):
    class Deep(SoundStepper):
        def __init__(self, shape):
            super().__init__(shape)
            self.depth = depth

    (record,) = check_method(Deep, only=["taps"]).records
    assert record.outcome == "failed", record.reason


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


OWN_METHODS = """
import torch
from torch import nn

from fusionbench.api import Fused, Fusion, InEncoderFusion, method


@method("dropper", version=1, control="penultimate")
class Dropper(Fusion):
    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((shape.layer(-2),),)
        self.drop, self.map = nn.Dropout(0.5), nn.Linear(shape.dim, shape.dim)

    def forward(self, hidden, query):
        return Fused(tokens=self.map(self.drop(self.patches(hidden[0]))))


@method("reads", version=1, control="none: it only reads")
class Reads(InEncoderFusion):
    writes = False

    def __init__(self, shape):
        super().__init__(shape)
        self.share = nn.Parameter(torch.ones(shape.dim))

    def start(self, tokens, query):
        return torch.zeros_like(tokens)

    def after_block(self, block, tokens, state):
        return tokens, state + self.share * tokens

    def finish(self, tokens, state):
        return Fused(tokens=self.patches(state))
"""


@pytest.mark.parametrize(("name", "check"), [("dropper", "compiled"), ("reads", "writes")])
def test_dropout_and_a_class_that_never_writes_pass_the_kit(name, check, tmp_path):
    file = tmp_path / "own.py"
    head, *classes = OWN_METHODS.split("\n\n\n")
    (own,) = [text for text in classes if f'"{name}"' in text]
    file.write_text(f"{head}\n\n\n{own}")
    (record,) = check_method(str(file), only=[check]).records
    assert record.outcome == "passed", record.reason
    card = read_catalog([str(file)]).methods[name]
    assert not card.in_encoder and card.facts["needs"] == ""


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


# The natural mistakes of a method's author: one message each, with file, line and mend.

FILE = '''"""A method of one's own."""
import torch
from torch import nn
from fusionbench.api import Fused, Fusion, method


@method("own", version=1)
class Own(Fusion):
    def __init__(self, shape):
        {start}
        {taps}
        self.line = nn.Linear(shape.dim, shape.dim)

    def forward(self, hidden, query):
        {result}
'''
RIGHT = {
    "start": "super().__init__(shape)",
    "taps": "self.taps = ((1,), (2,))",
    "result": "return Fused(tokens=self.patches(self.line(hidden.mean(0))))",
}
MISTAKES = {
    "no super": ({"start": "pass"}, 12, "call super().__init__(shape) first"),
    "no taps": ({"taps": "pass"}, 9, "set self.taps = ((layer,), ...) in __init__"),
    "tap too deep": ({"taps": "self.taps = ((1,), (99,))"}, 9, "tap (99,): hidden states are 0"),
    "tap one too deep": (
        {"taps": "self.taps = ((shape.layers + 1,),)"}, 9, "hidden states are 0 (embeddings) to",
    ),
    "tap between two": ({"taps": "self.taps = ((1.5,),)"}, 9, "each tap is a tuple of integers"),
    "double": (
        {"result": "return Fused(tokens=self.patches(self.line(hidden[0])).double())"}, 14,
        "tokens are torch.float64",
    ),
    "not finite": (
        {"result": "return Fused(tokens=self.patches(self.line(hidden[0])) / 0)"}, 14,
        "tokens are not finite",
    ),
    "detached": (
        {"result": "return Fused(tokens=self.patches(self.line(hidden[0])).detach())"}, 14,
        "no parameter gets a gradient",
    ),
    "negative tap": ({"taps": "self.taps = ((-2,),)"}, 9, "shape.layer(-2) counts from the end"),
    "bare index": ({"taps": "self.taps = (1, 2)"}, 9, "each tap is a tuple of integers"),
    "bare tensor": ({"result": "return self.line(hidden[0])"}, 14, "return Fused(tokens=...)"),
    "no token axis": (
        {"result": "return Fused(tokens=self.line(hidden[0])[:, 0])"}, 14,
        "keep the axis of tokens",
    ),
    "too wide": (
        {"result": "return Fused(tokens=torch.cat(list(hidden), -1))"}, 14,
        "set self.out_dim to the width, 2 * shape.dim",
    ),
    "wrong product": (
        {"result": "return Fused(tokens=self.line(hidden[0, :, :, :3]))"}, 15, "dim is shape.dim",
    ),
}  # fmt: skip


def fault(folder, **changes):
    file = folder / "mine.py"
    file.write_text(FILE.format(**RIGHT | changes))
    (subject,) = find(file)
    return first_fault(subject), file


@pytest.mark.fault(
    "plug-ins and workers",
    "a declaration or a class that cannot be used",
    "one message with file, line and mend, exit code 2",
)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_message_with_file_line_and_mend(tmp_path, name):
    changes, line, mend = MISTAKES[name]
    found, file = fault(tmp_path, **changes)
    assert found.startswith(f"{file}:{line}: ") and mend in found, found
    assert "\n" not in found


def test_a_right_method_and_every_built_in_one_has_no_fault(tmp_path):
    assert fault(tmp_path)[0] is None
    assert [subject.name for subject in find("all") if first_fault(subject)] == []


def test_the_command_stops_at_it(call, tmp_path):
    _, file = fault(tmp_path, taps="pass")
    code, out, _ = call("check", file)
    assert code == 1 and re.fullmatch(rf"own: cannot be used\n  {file}:9: .*taps.*\n", out)


def test_a_run_refuses_a_tap_that_the_encoder_does_not_have(tmp_path):
    from fusionbench.checks.toy import SHAPE
    from fusionbench.harness.model import build_fusion

    for taps in ("self.taps = ((-2,),)", "self.taps = ((99,),)"):
        _, file = fault(tmp_path, taps=taps)
        (subject,) = find(file)
        with pytest.raises(ValueError, match="Own reads hidden state .*, and this encoder has 0"):
            build_fusion(subject.cls, {}, SHAPE)


DECLARED = """from fusionbench.api import Fusion, method


@method("{name}", version=1{more})
class Own(Fusion):
    def __init__(self, shape{settings}):
        super().__init__(shape)
        self.taps = ((1,),)
"""
WRONG = {
    "no such control": (
        {"more": ', control="repeet"'}, 4, "control='repeet' of method 'own' is no method; did you "
        "mean 'repeat'?", 'control="none: it reads one layer"',
    ),
    "positional setting": (
        {"settings": ", ratio=0.5"}, 6, "'ratio' of Own stands before `*`",
        "def __init__(self, shape, *, ratio=...)",
    ),
    "clash with a built-in": (
        {"name": "last"}, 4, "method 'last' is already built-in", '@method("my_last", ...)',
    ),
    "a default that is no setting": (
        {"settings": ", *, ratio=None"}, 6, "the default of 'ratio' is None", "doctor",
    ),
}  # fmt: skip


def declared(file, name="own", more="", settings=""):
    file.write_text(DECLARED.format(name=name, more=more, settings=settings))
    return file


@pytest.mark.fault(
    "plug-ins and workers",
    "a declaration or a class that cannot be used",
    "one message with file, line and mend, exit code 2",
)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_ends_each_command_with_file_line_and_mend(call, tmp_path, name):
    changes, line, words, mend = WRONG[name]
    file = declared(tmp_path / "mine.py", **changes)
    for command in (
        ("run", "--methods", "penultimate", "--plugin", file, "--dry-run"), ("check", file),
    ):  # fmt: skip
        code, _, said = call(*command)
        error, hint = said.strip().splitlines()
        assert code == 2 and error.startswith(f"error: {file}:{line}: ") and words in error
        assert hint.startswith("hint: ") and mend in hint
    # A list shows what is there, and names what is not.
    code, out, said = call("list", "methods", "--plugin", file)
    assert code == 0 and "penultimate" in out and words in said


@pytest.mark.thorough
def test_two_plugins_of_one_name_are_an_error_that_names_both_and_a_note_if_installed(
    call, tmp_path, monkeypatch
):
    first, second = declared(tmp_path / "a.py"), declared(tmp_path / "b.py")
    run = ("run", "--methods", "own", "--preset", "smoke", "--dry-run", "--plugin", first)
    code, _, said = call(*run, "--plugin", second)
    assert code == 2 and f"error: {second}:4: method 'own' is already in {first}" in said
    monkeypatch.setenv("FUSIONBENCH_PLUGINS", str(second))
    code, out, said = call(*run)
    assert code == 0 and "own" in out and f"note: {second}: line 4: method 'own'" in said


def test_a_control_may_be_a_plugin_s_own_method_a_variant_or_a_sentence(call, tmp_path):
    for control in ("own", "mema-readout", "repeat[times=2]", "none", "none: it reads one layer"):
        file = declared(tmp_path / "mine.py", more=f', control="{control}"')
        code, _, said = call("list", "methods", "--plugin", file)
        assert code == 0 and not said, control


def test_the_first_use_of_a_file_builds_and_runs_what_it_declares(tmp_path):
    from fusionbench.checks.first_build import first_uses

    _, file = fault(tmp_path, **MISTAKES["bare tensor"][0])
    assert first_uses(str(file)) == [
        f"method own: {file}:14: forward gave a Tensor; return Fused(tokens=...)"
    ]
    (tmp_path / "right").mkdir()
    _, file = fault(tmp_path / "right")
    assert first_uses(str(file)) == []
    task = tmp_path / "torn.py"
    task.write_text(
        "from fusionbench.api import Task, task\n\n\n"
        "@task('torn', version=1, family='torn', group='fine')\nclass Torn(Task):\n"
        "    chance = 0.5\n\n    def load(self):\n        raise OSError('no disk')\n"
    )
    assert first_uses(str(task)) == [f"task torn: {task}: OSError: no disk"]


TASK = """import numpy as np

from fusionbench.api import Task, task
from fusionbench.api.tasks import Split, TaskData


@task("mine", version=1, family="mine", group="fine")
class Mine(Task):
    {chance}
    {score}

    def load(self):
        images = np.arange(240, dtype=np.uint8)[:, None, None, None]
        return TaskData(
            images=np.broadcast_to(images, (240, 8, 8, 3)).copy(), answers=("a", "b", "c"),
            train=split("train", 0, {train}), val=split("val", 60, [0, 1] * 10),
            test=split("test", 80, {test}),
        )


def split(name, first, answers):
    rows = [first + number * ({twice} if name == "train" else 1) for number in range(len(answers))]
    return Split(
        items=tuple(f"{{name}} {{number}}" for number in range(len(answers))),
        images=np.array(rows), questions={questions}, answers=np.array(answers),
    )
"""
SOUND_TASK = {
    "chance": "chance = 0.5", "score": "", "train": "[0, 1] * 20", "test": "[0, 1] * 50",
    "twice": 1, "questions": '("Which?",) * len(answers)',
}  # fmt: skip
OWN_SCORE = "def score(self, *given): return super().score(*given)"
TASK_FAULTS = {
    "chance missing": ({"chance": "pass"}, "set chance = 0.5, the share of the commonest answer"),
    "chance of one": ({"chance": "chance = 1"}, "chance is 1; it must lie from 0 to below 1"),
    "chance below zero": ({"chance": "chance = -0.1"}, "chance is -0.1; it must lie from 0"),
    "chance in percent": ({"chance": "chance = 50"}, "chance is 50; it must lie from 0"),
    "chance too low": (
        {"chance": "chance = 0.4"}, "the answer 'a' alone scores 0.5 on test; set chance = 0.5"
    ),
    "chance too high": (
        {"chance": "chance = 0.9"}, "scores 0.5 on test without the image; set chance = 0.5"
    ),
    "answers in the questions": (
        {"questions": "tuple(f'Is it {answer}?' for answer in answers)"},
        "scores 1 on test without the image; does a question give its answer away?",
    ),
}  # fmt: skip
TASK_NOTES = {
    "few test examples": (
        {"test": "[0, 1] * 31"},
        "62 test examples: one score is known to about 12 points either way, so small",
    ),
    "an answer that is never trained": (
        {"test": "[0, 1] * 49 + [0, 2]"},
        "test: 1 answers that training does not have, such as 'c'",
    ),
    "a question asked twice": (
        {"twice": 0},
        "train: 1 questions are asked twice of one image, such as 'Which?'",
    ),
}


def task_report(folder, **changes):
    from fusionbench.checks.first_build import check_task, tasks_of

    (folder / "mine.py").write_text(TASK.format(**SOUND_TASK | changes))
    (card,) = tasks_of(str(folder / "mine.py"), [])
    return check_task(card)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chance": "chance = 0"},
        {"chance": "chance = 0.46"},
        {"score": OWN_SCORE, "chance": "chance = 0.1"},
    ],
)
def test_a_sound_task_has_no_fault_and_no_note(tmp_path, changes):
    if changes.get("chance") == "chance = 0":
        changes = {**changes, "score": OWN_SCORE}
    report = task_report(tmp_path, **changes)
    assert (report.faults, report.notes) == ((), ())
    assert str(report) == (
        "mine: 240 images of 8 x 8, 3 answers, 40 train, 20 val, 100 test examples"
    )


@pytest.mark.parametrize("name", TASK_FAULTS)
def test_a_wrong_chance_is_named_with_the_right_one(tmp_path, name):
    changes, words = TASK_FAULTS[name]
    report = task_report(tmp_path, **changes)
    (fault,) = report.faults
    assert words in fault and report.notes == ()
    assert f"\n  fault: {fault}" in str(report)


@pytest.mark.parametrize("name", TASK_NOTES)
def test_what_makes_a_task_say_less_is_noted(tmp_path, name):
    changes, words = TASK_NOTES[name]
    report = task_report(tmp_path, **changes)
    (note,) = report.notes
    assert note.startswith(words) and report.faults == ()
    assert f"\n  note: {note}" in str(report)


def test_a_task_that_cannot_be_loaded_says_why(tmp_path):
    report = task_report(tmp_path, train="[0, 1, 5]")
    assert str(report).startswith("mine: cannot be used\n  fault: ") and report.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ("size=32)", "size=32, weights=('absent.bin',))", None),
        ("tokens * index", "tokens / (tokens - tokens)", ": its hidden states are not finite"),
        ("tokens * index", "tokens @ tokens", "RuntimeError: "),
        (
            "size=32)",
            "size=48)",
            "UserError: blank: @encoder declares (layers, ",
        ),
    ],
)
def test_the_first_use_of_an_encoder_reads_one_image(tmp_path, old, new, words):
    from fusionbench.checks.first_build import first_uses

    file = tmp_path / "blank.py"
    imported = "from fusionbench.api import Encoder, StackShape, encoder\n"
    file.write_text(imported + BLANK_ENCODER.replace(old, new))
    found = first_uses(str(file))
    assert len(found) == (words is not None)
    assert not words or (found[0].startswith(f"encoder blank: {file}: ") and words in found[0])


def test_a_width_that_is_no_multiple_is_named_as_it_is(tmp_path):
    odd = "return Fused(tokens=self.line(hidden[0])[:, :, :3])"
    assert "set self.out_dim to the width, 3, in __init__" in fault(tmp_path, result=odd)[0]


@pytest.mark.thorough
def test_a_run_whose_cells_fail_names_line_and_mend_once(call, tmp_path, monkeypatch):
    _, file = fault(tmp_path, **MISTAKES["bare tensor"][0])
    code, out, said = call(
        "run", "--preset", "smoke", "--plugin", file, "--methods", "own", "--tasks",
        "planted_layer", "--seeds", 2, "--out", tmp_path / "r",
    )  # fmt: skip
    assert code == 1 and "2 failed" in out
    assert said.count(f"note: method own: {file}:14: forward gave a Tensor; return Fused(") == 1


# The longest come last.


@pytest.mark.few(6)
@each_check(*A_FEW)
def test_a_few_methods_of_every_kind_pass_every_check(verdict):
    verdict()


def one_of_each() -> list:
    """All names; of a method's variants the first, the others are slow."""
    first = {name.split("-")[0]: name for name in reversed(names())}.values()
    return [pytest.param(n, marks=() if n in first else pytest.mark.slow) for n in names()]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", one_of_each())
def test_every_built_in_method_keeps_its_promises(name):
    report = check_method(name, only=QUICK)
    assert not report.unexpected, str(report)


@pytest.mark.slow
def test_every_built_in_method_passes_the_checks_that_take_longer():
    wrong = [check_method(name, only=SLOW) for name in names()]
    assert not [str(report) for report in wrong if report.unexpected]
