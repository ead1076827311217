"""Studies from YAML files and flags: keys, types and names are checked before anything runs."""

from dataclasses import replace

import pytest

from fusionbench.api.errors import UserError
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import resolve
from fusionbench.study.study import PAPER, PRESETS, QUICK, load_study, preset, with_overrides


def read(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_study(file)


def test_a_file_changes_what_it_names_and_keeps_the_rest_of_its_preset(tmp_path):
    study = read(
        tmp_path,
        "preset: paper\nseeds: 4\nmethods: [last, {layer: {index: 4}}, 'mema*']\ntasks: digits\n"
        "settings: {mema: {reduction: 2}}\nmargins: {suite: 1}\n"
        "budget:\n  steps: 10\n  lrs: [3e-3, 0.001]\n  precision: fp32\n",
    )
    assert (study.name, study.encoder, study.seeds) == ("mine", PAPER.encoder, 4)
    assert study.methods == ("last", "layer[index=4]", "mema*")
    assert study.tasks == ("digits",)
    assert study.settings == {"mema": {"reduction": 2}}
    assert study.margins == {"suite": 1.0}
    # YAML 1.1 reads 3e-3 as text.
    assert study.budget.lrs == (0.003, 0.001)
    assert (study.budget.steps, study.budget.batch) == (10, PAPER.budget.batch)


def test_a_file_without_a_preset_starts_from_quick(tmp_path):
    assert read(tmp_path, "seeds: 1").budget == QUICK.budget


def test_every_preset_is_a_study_that_a_file_can_start_from(tmp_path):
    for track, presets in PRESETS.items():
        for name, study in presets.items():
            found = read(tmp_path, f"track: {track}\npreset: {name}")
            assert found.budget == preset(name, track).budget == study.budget
            assert found.track == track and found.language == study.language


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sedes: 3", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("budget: {step: 3}", "unknown key 'step'; did you mean 'steps'?"),
        ("preset: quik", "no preset 'quik'; did you mean 'quick'?"),
        ("seeds: three", "seeds must be an integer, got 'three'"),
        ("seeds: true", "seeds must be an integer, got True"),
        ("seeds: 0", "seeds must be at least 1, got 0"),
        ("budget: {steps: 1.5}", "budget.steps must be an integer, got 1.5"),
        ("budget: {lrs: fast}", "budget.lrs[0] must be a number, got 'fast'"),
        ("budget: {lrs: []}", "budget.lrs is empty"),
        ("budget: {lrs: [.nan]}", "line 1: .nan is not a finite number"),
        ("seeds: 2\nbudget: {clip: -.inf}", "line 2: -.inf is not a finite number"),
        ("margins: {suite: .inf}", "line 1: .inf is not a finite number"),
        ("settings: {stepper: {rate: .NaN}}", "line 1: .NaN is not a finite number"),
        ("budget: {lrs: [1e400]}", "budget.lrs[0] must be a finite number, got inf"),
        ("budget: {weight_decay: nan}", "budget.weight_decay must be a finite number, got nan"),
        ("budget: {precision: fp16}", "budget.precision must be fp32 or bf16, got 'fp16'"),
        ("budget: {train_items: -1}", "budget.train_items must not be negative"),
        ("budget: 3", "budget must hold keys"),
        ("methods: 3", "methods must hold names, got 3"),
        ("methods: []", "methods is empty"),
        ("settings: {mema: 3}", "settings.mema must be keys and values, got 3"),
        ("encoder: [a]", "encoder must be text, got ['a']"),
        ("track: vml", "track must be probe or vlm, got 'vml'; did you mean 'vlm'?"),
        ("- a\n- b", "holds no study"),
        ("a: [", "is not YAML"),
        ("", "holds no study"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert "mine.yaml" in caught.value.message or "preset" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.yaml"):
        load_study(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="bytes.yaml"):
        load_study(tmp_path / "bytes.yaml")


def test_flags_win_over_the_study_and_add_to_its_settings(tmp_path):
    start = read(tmp_path, "settings: {mema: {reduction: 2}}")
    study = with_overrides(
        start,
        methods=["last,mema[reduction=2,query=false]", "scalar_mix"],
        seeds=1,
        settings=["mema.query=false", "layer.index=3"],
    )
    assert study.methods == ("last", "mema[reduction=2,query=false]", "scalar_mix")
    assert (study.seeds, study.tasks, study.encoder) == (1, start.tasks, start.encoder)
    assert study.settings == {
        "mema": {"reduction": 2, "query": "false"},
        "layer": {"index": "3"},
    }


@pytest.mark.parametrize("text", ["mema", "mema.reduction", "=3", "mema=3", ".x=3", "mema.=3"])
def test_a_setting_that_cannot_be_read_shows_the_right_form(text):
    with pytest.raises(UserError) as caught:
        with_overrides(QUICK, settings=[text])
    assert "method.key=value" in caught.value.hint


def test_a_file_declares_its_own_contrasts_or_none(tmp_path):
    assert QUICK.contrasts
    assert read(tmp_path, "preset: quick").contrasts == ()
    assert len(read(tmp_path, "contrasts: [{method: mema}]").contrasts) == 1


def test_references_are_true_or_false(tmp_path):
    assert read(tmp_path, "references: false").references is False
    with pytest.raises(UserError, match="references must be true or false, got 'some'"):
        read(tmp_path, "references: some")


def test_all_methods_bring_every_single_layer_under_the_closed_form():
    catalog = read_catalog()

    def layers(study):
        chosen = resolve(replace(study, tasks=("digits",)), catalog).methods
        return [one.label for one in chosen if one.card.name == "layer"]

    assert layers(QUICK) == [f"layer[index={index}]" for index in range(7)]
    attentive = replace(QUICK, budget=replace(QUICK.budget, reader="attentive"))
    assert layers(attentive) == [f"layer[index={i},reader=ridge]" for i in range(9)]
    assert layers(replace(QUICK, references=False)) == []
    assert layers(replace(QUICK, methods=("mema", "penultimate"))) == []


def test_what_a_flag_leaves_out_of_a_preset_is_not_planned():
    few = replace(QUICK, methods=("mema", "adapter", "penultimate"), tasks=("digits",))
    planned = resolve(few, read_catalog()).study.contrasts
    assert [(one["method"], one.get("baseline")) for one in planned] == [
        ("mema", None), ("mema", "adapter"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["name: [1]", "methods: 3", "tasks: [3]", "mixture: 3", "settings: 3", "encoder: {a: 1}",
     "baseline: 3", "note: [1]", "margins: 3", "budget: {steps: x}", "budget: {lrs: [x]}",
     "budget: {optimiser: 3}", "budget: {reader: [1]}"],
)  # fmt: skip
def test_the_example_in_a_hint_is_a_value_that_the_field_takes(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="mine.yaml") as caught:
        load_study(file)
    example = caught.value.hint.removeprefix("for example ")
    budget = text.startswith("budget")
    file.write_text(f"budget: {{{example}}}" if budget else f"{example}\n")
    if text.startswith("mixture"):
        file.write_text(f"track: vlm\npreset: smoke\n{example}\n")
    key = example.partition(":")[0]
    study = load_study(file)
    assert getattr(study.budget if budget else study, key)
