"""Contrasts and margins of a study file: checked before anything runs."""

import pytest

from fusionbench.api.errors import UserError
from fusionbench.stats.verdicts import MOST_PLANNED
from fusionbench.study import contrasts
from fusionbench.study.contrasts import Contrast, check_known, check_margins, read_contrasts
from fusionbench.study.study import load_study


def test_a_contrast_takes_the_studys_baseline_and_the_methods_own_control():
    (one,) = read_contrasts([{"method": "mema"}], "penultimate")
    assert one == Contrast(method="mema", baseline="penultimate", control="", over="suite")
    (one,) = read_contrasts(
        [{"method": "dia", "baseline": "last", "control": "repeat", "over": "fine", "name": "x"}],
        "p",
    )
    assert (one.baseline, one.control, one.over, one.name) == ("last", "repeat", "fine", "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"methd": "mema"}], r"contrasts\[1\]: unknown key 'methd'; did you mean 'method'"),
        ([{"baseline": "last"}], r"contrasts\[1\] names no method"),
        ([{"method": 3}], r"contrasts\[1\].method must be a name, got 3"),
        (["mema"], r"contrasts\[1\] must hold keys, got 'mema'"),
        ([{"method": "penultimate"}], "penultimate is compared with itself"),
        ([{"method": "mema", "control": "mema"}], "mema is compared with itself"),
        ([{"method": "mema"}, {"method": "mema"}], "mema comes twice"),
        ([{"method": f"m{i}"} for i in range(13)], "at most 12 can be planned, got 13"),
    ],
)
def test_what_is_no_contrast_is_refused_in_words(values, said):
    with pytest.raises(UserError, match=said):
        read_contrasts(values, "penultimate")


def test_margins_are_positive_and_of_a_level_that_exists():
    check_margins({"suite": 1.0, "task": 2.0})
    with pytest.raises(UserError, match="margins.suite must be positive, got 0"):
        check_margins({"suite": 0})
    with pytest.raises(UserError, match="unknown key 'tasks'; did you mean 'task'"):
        check_margins({"tasks": 1.0})


def test_a_contrast_of_an_unknown_method_is_refused_with_the_nearest_name():
    planned = read_contrasts([{"method": "mena"}], "penultimate")
    with pytest.raises(UserError, match="no method 'mena'; did you mean 'mema'"):
        check_known(planned, ["mema", "penultimate"])
    check_known(read_contrasts([{"method": "mema"}], "penultimate"), ["mema", "penultimate"])


def test_a_study_file_is_refused_before_it_runs(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("contrasts:\n  - {method: mema, ovr: fine}\n")
    with pytest.raises(UserError, match="unknown key 'ovr'; did you mean 'over'"):
        load_study(file)
    file.write_text("contrasts:\n  - {method: mema, over: fine}\nmargins: {suite: -1}\n")
    with pytest.raises(UserError, match="margins.suite must be positive"):
        load_study(file)
    file.write_text("contrasts:\n  - {method: mema, over: fine}\nmargins: {suite: 0.5}\n")
    assert load_study(file).contrasts == ({"method": "mema", "over": "fine"},)


def test_the_largest_family_is_that_of_the_statistics():
    assert contrasts.MOST_PLANNED == MOST_PLANNED
