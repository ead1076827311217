"""What names, globs and settings mean, and what is said when they mean nothing."""

import pytest
from plugin_files import GOOD

from fusionbench.api.errors import UserError
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods, select_tasks


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugins") / "mine.py"
    file.write_text(GOOD)
    return read_catalog([str(file)])


def labels(catalog, *names, settings=None):
    return [chosen.label for chosen in select_methods(catalog, names, settings)]


def test_all_means_all_but_what_stays_out_of_all_and_a_name_reaches_that_too(catalog):
    assert "blend" in labels(catalog, "all") and "blend_twin" not in labels(catalog, "all")
    assert labels(catalog, "blend_twin") == ["blend_twin"]


def test_a_glob_takes_what_matches_and_nothing_is_taken_twice(catalog):
    assert labels(catalog, "blend*", "blend") == ["blend", "blend-wide", "blend_twin"]


def test_inline_settings_are_typed_by_their_defaults_and_show_in_the_label(catalog):
    (chosen,) = select_methods(catalog, ["blend[width=32,layers=(3,4),kind=hard]"])
    assert chosen.settings == {"width": 32, "kind": "hard", "layers": (3, 4)}
    assert chosen.label == "blend[kind=hard,layers=(3,4),width=32]"
    (chosen,) = select_methods(catalog, ["stepper[on=false,rate=1e-3]"])
    assert chosen.settings == {"rate": 1e-3, "on": False}


def test_a_setting_at_its_default_does_not_show(catalog):
    assert labels(catalog, "blend[width=8]", "blend") == ["blend"]


def test_a_family_setting_leaves_a_variant_what_it_is_about(catalog):
    settings = {"blend": {"width": "4", "kind": "hard"}}
    assert labels(catalog, "blend", "blend-wide", settings=settings) == [
        "blend[kind=hard,width=4]",
        "blend-wide[kind=hard]",
    ]
    assert labels(catalog, "blend-wide", settings={"blend-wide": {"width": 4}}) == [
        "blend-wide[width=4]"
    ]


@pytest.mark.fault("plug-ins and workers", "settings that mean nothing", "refused in one line")
@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["blemd"], {}, "no method 'blemd'; did you mean 'blend'?"),
        (["zzz*"], {}, "no method 'zzz*'"),
        (["blend[widht=3]"], {}, "no setting 'blend.widht'; did you mean 'blend.width'?"),
        (["blend[width=three]"], {}, "blend.width must be an integer, got 'three'"),
        (["blend"], {"blend": {"width": 2.5}}, "blend.width must be an integer, got 2.5"),
        (["blend"], {"blend": {"width": True}}, "blend.width must be an integer, got True"),
        (["blend"], {"blend": {"layers": "a,b"}}, "blend.layers must be integers"),
        (["stepper"], {"stepper": {"on": "maybe"}}, "stepper.on must be true or false"),
        (["stepper"], {"stepper": {"rate": "fast"}}, "stepper.rate must be a finite number"),
        (["stepper[rate=nan]"], {}, "stepper.rate must be a finite number, got 'nan'"),
        (["stepper[rate=-1e400]"], {}, "stepper.rate must be a finite number, got '-1e400'"),
        (["stepper"], {"stepper": {"rate": float("inf")}}, "stepper.rate must be a finite number"),
        (["blend"], {"blend": {"width": None}}, "blend.width must be an integer, got None"),
        (["blend"], {"blend": {"kind": [1]}}, "blend.kind must be a word, got [1]"),
        (["blend"], {"blend": {"layers": {"a": 1}}}, "blend.layers must be integers"),
        (["blend"], {"blend": {"layers": [1.5]}}, "blend.layers must be integers"),
        (["blend"], {"stepper": {"rate": 1}}, "not among the chosen methods"),
        (["blend"], {"steper": {"rate": 1}}, "no method 'steper'; did you mean 'stepper'?"),
    ],
)
def test_what_means_nothing_is_refused_in_words(catalog, names, settings, said):
    with pytest.raises(UserError) as caught:
        select_methods(catalog, names, settings)
    assert said in str(caught.value)


def test_all_tasks_are_the_available_ones_and_the_others_are_named_with_their_command(catalog):
    here, left_out = select_tasks(catalog, ["all"])
    assert "toy_task" in [card.name for card in here]
    reasons = {one.card.name: one.reason for one in left_out}
    assert "pip install no-such-package-here" in reasons["far_task"]


def test_a_task_asked_for_by_name_must_be_here(catalog):
    with pytest.raises(UserError) as caught:
        select_tasks(catalog, ["toy_task", "far_task"])
    assert "needs no_such_package_here" in caught.value.message
    assert caught.value.hint == "get it with: pip install no-such-package-here"


def test_a_glob_that_matches_only_missing_tasks_says_how_to_get_them(catalog):
    with pytest.raises(UserError) as caught:
        select_tasks(catalog, ["far_*"])
    assert "pip install no-such-package-here" in caught.value.hint


def test_an_unknown_task_answers_with_the_nearest(catalog):
    with pytest.raises(UserError, match="no task 'toy_tsk'; did you mean 'toy_task'?"):
        select_tasks(catalog, ["toy_tsk"])
