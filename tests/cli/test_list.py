"""`list methods --long`: every fact against the code, every number against the papers' setting."""

import json
from dataclasses import replace

import pytest
import torch
from method_sizes import PUBLISHED_UNIT, REFERENCE
from plugin_files import GOOD

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape
from fusionbench.cli.listing import (
    UNKNOWN,
    cards_of,
    facts_of,
    json_text,
    methods_long,
    methods_text,
    parameter_count,
    picked,
    tasks_text,
)
from fusionbench.harness.stepping import needs_encoder
from fusionbench.methods._units import RecurrentUnit
from fusionbench.registry.cards import CLIP_L, Sizes, arxiv_number, count, paper_titles
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.report.paper import papers

CATALOG = read_catalog()
METHODS = {name: card for name, card in CATALOG.methods.items() if card.source == "built-in"}
# Facts that somebody still has to look up, by method; `-` is what a control has for a paper.
PENDING: dict[str, set[str]] = {}
PARITY = ("exact", "equations: ", "deviates: ", "no official code", "not compared: ")

# 4.60, 4.80, 6.76, 9.13 million for 1, 2, 12, 24 levels.
ROUNDED = {"18": 4.60, "3_18_23": 4.80, "former": 6.76, "latter": 6.76, "all": 9.13}


def at(name: str, sizes: Sizes, query_width: int):
    card = METHODS[name]
    side = round(sizes.patches**0.5)
    shape = StackShape(
        layers=sizes.layers,
        dim=sizes.width,
        grid=(side, side),
        prefix=1,
        query_dim=query_width,
        mlp=4 * sizes.width,
        reader=ReaderShape(layers=32, width=sizes.llm, heads=4, mlp=sizes.mlp),
    )
    with torch.device("meta"):
        return load_method(card)(shape, **card.settings)


@pytest.mark.few(62)
@pytest.mark.parametrize(
    "sizes",
    [CLIP_L, Sizes(width=64, layers=24, patches=16, llm=96, mlp=40)],
    ids=["clip-l", "small"],
)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_formula_counts_what_the_method_and_its_share_of_the_projector_train(name, sizes):
    card = METHODS[name]
    if not card.facts.get("parameters"):
        pytest.skip("its formula is pending")
    width = int(card.facts.get("query_width", 0))
    built = at(name, sizes, width or sizes.llm)
    trained = sum(p.numel() for p in built.parameters())
    beside = (built.out_dim - sizes.width) * sizes.llm
    formula = str(card.facts["parameters"])
    if sizes is not CLIP_L and name.startswith(("mrla", "dla")):
        pytest.skip("its convolution's kernel depends on the width")
    assert count(formula, card.settings, sizes, query_width=width) == trained + beside


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_the_number_is_that_of_the_official_code(name):
    facts = METHODS[name].facts
    assert facts.get("published", parameter_count(METHODS[name])) == REFERENCE[name]
    differs = parameter_count(METHODS[name]) != REFERENCE[name]
    assert not differs or str(facts["parity"]).startswith("deviates")


def test_mrla_leaves_out_the_last_block_and_adds_a_gate_to_each_of_the_others():
    """The published count has 24 blocks; only hs[23] is read here, so there are 23."""
    found = {form: parameter_count(METHODS[f"mrla-{form}"]) for form in ("light", "base")}
    assert found["light"] == REFERENCE["mrla-light"] // 24 * 23 + 23
    # The first block after a reset has one key: its query kernel of 5 could never learn.
    assert found["base"] == REFERENCE["mrla-base"] // 24 * 23 + 23 - 6 * 5


def test_dla_is_the_published_unit_and_a_block_of_layer_attention_after_each_block():
    """The published sum, for 24 blocks, leaves out the convolution that refreshes a block's input.

    The port has that, one norm where MRLA's form has two, and a gate, after blocks 1 to 23.
    """
    with torch.device("meta"):
        unit = RecurrentUnit(1024, gates=3, reduction=4)
    assert sum(p.numel() for p in unit.parameters()) == PUBLISHED_UNIT
    each = REFERENCE["mrla-light"] // 24 + 9 * 1024 - 2 * 1024 + 1
    for name in ("dla", "dla_as_published"):
        assert parameter_count(METHODS[name]) == PUBLISHED_UNIT + 23 * each


@pytest.mark.parametrize("suffix", ROUNDED)
def test_lsf_external_modular_has_the_millions_of_its_levels(suffix):
    millions = parameter_count(METHODS[f"lsf_external_modular-{suffix}"]) / 1e6
    assert round(millions, 2) == pytest.approx(ROUNDED[suffix], abs=0.011)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_needs_and_start_are_those_of_the_method_when_it_is_built(name):
    card = METHODS[name]
    # 24 blocks: on a short encoder two of a paper's layers may become one.
    reader = ReaderShape(layers=4, width=16, heads=4, mlp=32)
    shape = StackShape(
        layers=24, dim=64, grid=(4, 4), prefix=1, query_dim=8, mlp=128, reader=reader
    )
    built = load_method(card)(shape, **card.settings)
    wants = {"query": built.needs_query, "grid": built.needs_grid}
    wants |= {"encoder gradients": needs_encoder(built)}
    assert card.facts["needs"] == ", ".join(name for name, wanted in wants.items() if wanted)
    assert card.facts["identity"] == built.identity_at_init


def missing(card) -> set[str]:
    facts = {"parameters"} | (
        {"paper", "year", "parity"} if "itself" not in card.control else set()
    )
    if card.name in ("random_layers",):
        facts -= {"paper", "year", "parity"}
    if card.family == "mol":  # a project page, no paper yet
        facts -= {"paper"}
    return {fact for fact in facts if not card.facts.get(fact)}


def test_no_method_lacks_a_fact_unless_it_is_on_the_list():
    lacking = {name: missing(card) for name, card in METHODS.items() if missing(card)}
    assert lacking == PENDING


@pytest.mark.parametrize("name", sorted(METHODS))
def test_parity_begins_with_one_of_five_words(name):
    parity = str(METHODS[name].facts.get("parity", "exact"))
    assert parity.startswith(PARITY)


def test_the_text_shows_formula_and_number_and_a_dash_for_what_was_not_said(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    catalog = read_catalog([str(file)])
    text = methods_long(catalog)
    mema = text[text.index("\nmema\n") :].split("\n\n")[0]
    assert "arXiv:2603.00655, 2026" in mema and "= 11,021,569" in mema
    assert "query, encoder gradients" in mema
    facts = facts_of(catalog.methods["stepper"])
    assert facts["paper"] == facts["parity"] == facts["parameters"] == UNKNOWN
    assert f"stepper  from {file}" in text


def test_programs_get_the_number_as_well():
    cards = {card["name"]: card for card in json.loads(json_text("methods", CATALOG))}
    assert cards["tgif"]["parameters_at_clip_l"] == 2_112_024


@pytest.mark.parametrize(
    ("formula", "told_what"),
    [
        ("__import__('os')", "cannot read"),
        ("D**D", "power"),
        ("2*X", "'X'"),
        ("D/2", "cannot read"),
        ("2*", "not a formula"),
        ("1+" * 200 + "1", "not a formula"),
    ],
)
def test_a_formula_is_arithmetic_and_nothing_else(formula, told_what):
    with pytest.raises(ValueError, match=told_what):
        count(formula, {})


def test_a_wrong_formula_of_a_plugin_stops_no_list(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD.replace('"stepper", version=1', '"stepper", version=1, parameters="2*X"'))
    catalog = read_catalog([str(file)])
    assert "'X'" in facts_of(catalog.methods["stepper"])["parameters"]
    assert "stepper" in json_text("methods", catalog)


def test_a_line_a_method_in_80_columns_with_what_a_variant_changes():
    lines = methods_text(list(CATALOG.methods.values())).splitlines()
    assert max(len(line) for line in lines) <= 82
    (mema,) = [line for line in lines if line.startswith("mema ")]
    assert "2026 +  a memory along the blocks that writes back" in mema
    after = lines[lines.index(mema) + 1 :]
    below = after[: next(i for i, line in enumerate(after) if not line.startswith("  -"))]
    family = {card.variant for card in CATALOG.methods.values() if card.family == "mema"} - {""}
    assert {line.split()[0].removeprefix("-") for line in below} == family
    assert any(line.split() == ["-no_memory", "+", "memory=none"] for line in below)
    names = [line for line in lines if not line.startswith(" ")]
    assert len(names) == len({card.family for card in CATALOG.methods.values()}) + 3


def test_every_built_in_method_has_an_idea_of_eight_words_that_its_line_shows_whole():
    text = methods_text(list(METHODS.values()))
    for name, card in METHODS.items():
        idea = str(card.facts["idea"])
        assert idea in text and len(idea.split()) <= 8, name


@pytest.mark.parametrize("kind", ["tasks", "encoders", "papers"])
def test_the_other_lists_fit_80_columns(call, kind):
    code, out, _ = call("list", kind)
    assert code == 0 and max(map(len, out.splitlines())) <= 80


def test_a_task_says_what_it_asks_and_how_to_get_its_data(monkeypatch):
    card = replace(CATALOG.tasks["elpv"], missing=("elpv_dataset",))
    text = tasks_text(replace(CATALOG, tasks={**CATALOG.tasks, "elpv": card}))
    assert "\ndigits              fine         Which digit is written?\n" in text
    assert "\nelpv                fine      -  Is this solar cell functional" in text
    assert f"\n  elpv: {card.get}\n" in text and "DIR/POPE.tsv" not in text
    assert "DIR/POPE.tsv" in tasks_text(picked(CATALOG, "tasks", ["pope"]), long=True)


def test_names_and_globs_pick_and_a_wrong_one_is_named():
    assert set(picked(CATALOG, "methods", ["mema*", "tgif"]).methods) == {
        name for name in CATALOG.methods if name.startswith("mema") or name == "tgif"
    }
    assert set(picked(CATALOG, "tasks", ["scenes_*"]).tasks) == {
        name for name in CATALOG.tasks if name.startswith("scenes_")
    }
    with pytest.raises(UserError, match="no method 'memo'; did you mean 'mema'"):
        picked(CATALOG, "methods", ["memo"])


def test_a_card_has_every_fact_of_a_method_a_task_and_an_encoder():
    (mema,) = cards_of(CATALOG, "mema-no_memory")
    assert (
        "memory=none" in mema and "arXiv:2603.00655" in mema and "control     mema-readout" in mema
    )
    (digits,) = cards_of(CATALOG, "digits")
    assert "skill       fine" in digits and CATALOG.tasks["digits"].about in digits
    (nano,) = cards_of(CATALOG, "nano")
    assert "blocks      8" in nano and "/" not in nano.split("weights")[1]
    with pytest.raises(UserError, match="did you mean 'nano'"):
        cards_of(CATALOG, "nanno")


def test_every_paper_with_a_number_has_its_title_and_every_title_a_method():
    numbers = {arxiv_number(str(card.facts.get("paper", ""))) for card in METHODS.values()} - {""}
    assert numbers == set(paper_titles())
    assert METHODS["dense_connector-dci"].title == "Dense Connector for MLLMs"
    assert "Dense Connector for MLLMs" in cards_of(CATALOG, "dense_connector-dci")[0]
    # The tables of a paper bear the same title.
    for one in papers().values():
        assert paper_titles()[arxiv_number(one.paper)] == one.title


@pytest.mark.parametrize(
    ("words", "glob"),
    [
        (("show", "dense_connector"), "'dense_connector-*' takes dense_connector-dci, "),
        (("show", "scenes"), "'scenes_*' takes scenes_count, "),
        (("list", "tasks", "planted"), "'planted_*' takes planted_feedback, "),
        (("run", "--methods", "dense_connector", "--dry-run"), "'dense_connector-*' takes "),
        (("run", "--tasks", "scenes", "--dry-run"), "'scenes_*' takes "),
    ],
)
def test_the_start_of_several_names_is_refused_with_the_glob_that_takes_them(call, words, glob):
    code, _, said = call(*words)
    assert code == 2 and glob in said
