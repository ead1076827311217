"""Which variants an ablation runs: declared beside the method, one change each or combined."""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from toy_encoder import SHAPE as TOY
from toy_encoder import draw
from toy_encoder import run as fuse_toy
from toy_records import put, spec

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape
from fusionbench.harness.model import build_fusion
from fusionbench.records.history import Design, PlannedAblation, note_design, read_designs
from fusionbench.records.merge import merge
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods
from fusionbench.study.ablation import base_of, factorial, one_factor_out
from fusionbench.study.contrasts import Contrast, check_known, check_margins, read_contrasts
from fusionbench.study.reading import load_study

CATALOG = read_catalog()
LAYERS = ReaderShape(layers=4, width=16, heads=4, mlp=24)
SHAPE = StackShape(layers=8, dim=32, grid=(4, 4), prefix=1, query_dim=8, reader=LAYERS)
WITH_SWITCHES = sorted(
    name
    for name, card in CATALOG.methods.items()
    if any(card.settings[key] != v for key, values in card.switches.items() for v in values)
)


def base(name="mema"):
    return base_of(CATALOG, name, {})


def settings_of(label: str) -> dict:
    return dict(select_methods(CATALOG, [label])[0].settings)


@pytest.mark.parametrize("name", WITH_SWITCHES)
def test_each_arm_of_a_method_differs_from_it_in_the_one_setting_it_names(name):
    design = one_factor_out(CATALOG, base(name))
    full = settings_of(name)
    assert design.variants[0].label == name and settings_of(name) == full
    for variant in design.variants[1:]:
        changed = {key for key, value in settings_of(variant.label).items() if value != full[key]}
        assert changed == {variant.switch}
    assert len({variant.label for variant in design.variants}) == len(design.variants) > 1


@pytest.mark.parametrize("name", WITH_SWITCHES)
def test_every_arm_can_be_built(name):
    for variant in one_factor_out(CATALOG, base(name)).variants:
        chosen = select_methods(CATALOG, [variant.label])[0]
        built = build_fusion(load_method(chosen.card), chosen.settings, SHAPE)
        assert isinstance(built, load_method(chosen.card)) and built.out_dim > 0


def test_mema_is_taken_apart_in_all_its_parts():
    found: dict[str, set[str]] = {}
    for variant in one_factor_out(CATALOG, base()).variants[1:]:
        found.setdefault(variant.switch, set()).add(variant.level)
    assert found == {
        "memory": {"none", "rebuilt"},
        "feedback": {"after", "none"},
        "query": {"false"},
        "gates": {"none", "forget", "input"},
        "summary": {"mean", "max", "cls", "mean+max", "mean+cls", "max+cls"},
        "reduction": {"1", "2", "8"},
        "init": {"as_written", "repaired"},
        "every": {"2", "3"},
        "where": {"shallow", "deep"},
        "opening": {"scalar"},
        "alignment": {"0.05", "0.1", "0.15", "0.3"},
    }


def test_registered_variants_keep_their_names_so_that_their_records_are_used():
    labels = {variant.label for variant in one_factor_out(CATALOG, base()).variants}
    assert {"mema-no_query", "mema-no_memory", "mema-readout", "mema-repaired"} <= labels
    assert "mema[gates=none]" in labels


def test_the_base_may_be_a_variant_or_carry_settings():
    design = one_factor_out(CATALOG, base("mema[init=repaired]"), ["query"])
    assert [variant.label for variant in design.variants] == [
        "mema-repaired",
        "mema[init=repaired,query=false]",
    ]
    from_variant = one_factor_out(CATALOG, base("mema-repaired"), ["init"])
    assert {variant.level for variant in from_variant.variants[1:]} == {"as_written"}


def test_a_full_factorial_has_every_combination_once_the_full_method_first():
    design = factorial(CATALOG, base(), ["memory=rebuilt", "feedback", "query"])
    assert design.switches == ("memory=rebuilt", "feedback=after", "query=false")
    assert [variant.on for variant in design.variants] == list(product((True, False), repeat=3))
    assert design.variants[0].label == "mema" and design.skipped == 0
    for variant in design.variants:
        settings = settings_of(variant.label)
        assert (settings["memory"] == "carried") == variant.on[0]
        assert (settings["feedback"] == "each_block") == variant.on[1]
        assert settings["query"] == variant.on[2]


def test_combinations_in_which_a_switch_can_do_nothing_are_no_cells():
    design = factorial(CATALOG, base(), ["memory=none", "query"])
    assert [variant.on for variant in design.variants] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    assert design.skipped == 1
    # The one cell keeps what can do nothing, so that it is a registered variant with records.
    assert design.variants[2].label == "mema-no_memory"


def test_what_can_do_nothing_is_the_methods_own_in_every_cell_but_nothing_else_is():
    design = factorial(CATALOG, base(), ["memory=none", "feedback=none", "query"])
    for variant in design.variants:
        settings = settings_of(variant.label)
        assert (settings["feedback"] == "each_block") == variant.on[1]
        if variant.on[1]:
            assert (settings["memory"] == "carried") == variant.on[0]
    assert design.variants[-1].label == "mema-no_feedback"


def test_of_two_switches_that_each_make_the_other_idle_one_stays_off():
    card = CATALOG.methods["mema"]
    idle = (({"memory": "none"}, ("feedback",)), ({"feedback": "none"}, ("memory",)))
    both = replace(base(), card=replace(card, idle=idle))
    last = factorial(CATALOG, both, ["memory=none", "feedback=none"]).variants[-1]
    settings = settings_of(last.label)
    assert last.on == (False, False)
    assert (settings["memory"], settings["feedback"]) in [
        ("none", "each_block"),
        ("carried", "none"),
    ]


IDLE = [
    (dict(given), switch, level)
    for given, switches in CATALOG.methods["mema"].idle
    for switch in switches
    for level in CATALOG.methods["mema"].switches[switch]
]


@pytest.mark.parametrize(("given", "switch", "level"), IDLE, ids=str)
def test_a_switch_that_is_called_idle_changes_no_token_whatever_the_weights(given, switch, level):
    if given.get("memory") == "none" and switch == "alignment":
        return  # refused by the method: there is nothing to align
    method = load_method(CATALOG.methods["mema"])
    found = []
    for settings in (given, given | {switch: level}):
        torch.manual_seed(0)
        fusion = method(TOY, **settings)
        for number, (_, parameter) in enumerate(sorted(fusion.named_parameters())):
            rng = torch.Generator().manual_seed(number)
            torch.nn.init.normal_(parameter, std=0.3, generator=rng)
        found.append(fuse_toy(fusion, *draw()).tokens)
    assert torch.equal(*found)


def test_without_feedback_one_cell_stands_for_all_that_the_memory_could_be():
    design = factorial(CATALOG, base(), ["memory=rebuilt", "feedback=none", "query"])
    assert [variant.on for variant in design.variants if not variant.on[1]] == [
        (False, False, False)
    ]
    assert design.skipped == 3


def test_five_switches_run_as_sixteen_cells():
    design = factorial(
        CATALOG, base(), ["memory=rebuilt", "query", "gates=forget", "summary", "init=repaired"]
    )
    assert len(design.variants) == 16 and design.variants[0].label == "mema"


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        (["memory"], "2 to 8"),
        (["memori", "query"], "did you mean 'memory'"),
        (["query=true", "memory"], "is the method itself"),
        (["memory=carreid2", "query"], ""),
        (["memory=none", "query", "init", "summary", "reduction"], "fraction"),
    ],
)
def test_a_factorial_that_cannot_be_is_refused(switches, told):
    if not told:
        # A wrong word is found by the method itself when its cell runs.
        assert factorial(CATALOG, base(), switches).variants
        return
    with pytest.raises(UserError, match=told):
        factorial(CATALOG, base(), switches)


def test_a_switch_that_is_off_in_the_method_itself_is_refused_where_it_is_named():
    first = base("attnres[first=0]")
    said = r"attnres\[first=0\] has switched first off already"
    with pytest.raises(UserError, match=said) as error:
        factorial(CATALOG, first, ["first", "values"])
    assert "first=..." in error.value.hint
    assert factorial(CATALOG, first, ["first=1", "values"]).variants
    with pytest.raises(UserError, match=said):
        one_factor_out(CATALOG, first, ["first"])
    with pytest.raises(UserError, match=said):
        one_factor_out(CATALOG, replace(first, card=replace(first.card, switches={"first": (0,)})))


def test_a_method_without_switches_is_refused_with_those_that_have_some():
    with pytest.raises(UserError, match="declares no switches") as refused:
        base("last")
    assert "mema" in refused.value.hint
    with pytest.raises(UserError, match="means"):
        base("mema*")


def test_designs_come_back_from_disk_and_replace_their_earlier_selves(tmp_path):
    design = factorial(CATALOG, base(), ["memory=none", "query"])
    cells = {variant.label: {"digits": ("a", "b")} for variant in design.variants}
    budget = "60 steps, 2 seeds"
    planned = PlannedAblation(design=design, encoder="nano", budget=budget, cells=cells)
    note_design(tmp_path, planned)
    grown = replace(planned, budget="60 steps, 10 seeds")
    note_design(tmp_path, grown)
    other = one_factor_out(CATALOG, base(), ["query"])
    more = PlannedAblation(
        design=other, encoder="nano", budget="60 steps",
        cells={variant.label: {"digits": ("c",)} for variant in other.variants},
    )  # fmt: skip
    note_design(tmp_path, more)
    assert read_designs(tmp_path) == [grown, more]
    # The keys of earlier files.
    text = (tmp_path / "ablations.json").read_text()
    assert text.count('"variants"') == 2 and text.count('"skipped"') == 2
    old = text.replace('"variants"', '"arms"').replace('"skipped"', '"void"')
    # They had no checksum either.
    old = re.sub(r',\s*"checksum": "[0-9a-f]+"', "", old)
    (tmp_path / "ablations.json").write_text(old)
    assert read_designs(tmp_path) == [grown, more]
    (tmp_path / "ablations.json").write_text("{}")
    assert read_designs(tmp_path) == []
    assert isinstance(design, Design)


def test_other_switches_or_another_budget_replace_no_design(tmp_path):
    """Nor do they become one when folders are merged."""
    (tmp_path / "b").mkdir()
    query, memory = (one_factor_out(CATALOG, base(), [name]) for name in ("query", "memory"))
    asked = [
        PlannedAblation(
            design=design, encoder="nano", budget=budget,
            cells={variant.label: {"digits": ("c",)} for variant in design.variants},
        )
        for design, budget in ((query, "60 steps"), (memory, "60 steps"), (query, "90 steps"))
    ]  # fmt: skip
    for one in asked:
        note_design(tmp_path, one)
    assert read_designs(tmp_path) == asked
    with Store.create(tmp_path / "a") as first, Store.create(tmp_path / "b") as second:
        put(first, spec(), 0.5)
        put(second, spec(seed=1), 0.5)
    for store, one in ((first, asked[0]), (second, asked[1])):
        note_design(store.folder, one)
    merge([first.folder, second.folder], tmp_path / "joined")
    assert read_designs(tmp_path / "joined") == asked[:2]


def test_a_switch_of_an_unknown_setting_is_a_problem_of_that_method(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fusionbench.api import Fusion, method\n"
        "@method('a', version=1, switches={'wdith': (1,)})\n"
        "class A(Fusion):\n    def __init__(self, shape, *, width: int = 2): ...\n"
    )
    problems = read_catalog([str(file)]).problems
    assert "switches changes unknown setting 'wdith'" in str(problems[0])


# Contrasts and margins of a study file: checked before anything runs.


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
        check_known(planned, ["mema", "penultimate"], ["fine"])
    for over in ("suite", "fine"):
        asked = read_contrasts([{"method": "mema", "over": over}], "penultimate")
        check_known(asked, ["mema", "penultimate"], ["fine"])


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
