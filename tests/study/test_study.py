"""Study files, presets and settings; an edited plug-in stops a run."""

import shutil
from dataclasses import replace

import in_process
import pytest

from fusionbench.api.errors import UserError
from fusionbench.records.folder import set_aside
from fusionbench.records.states import superseded
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.provenance import code_hash
from fusionbench.study.mixture import MixtureCard
from fusionbench.study.plan import resolve
from fusionbench.study.reading import load_study, with_overrides
from fusionbench.study.study import PAPER, PRESETS, QUICK, preset
from fusionbench.study.training import describe_language, evaluated, training_of


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


def refused(tmp_path, text):
    """The message of the error."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return caught.value.message


VLM = "track: vlm\ntraining: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sedes: 3", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("seeds: 1000000000000", "seeds must be at most 10,000, got 1,000,000,000,000"),
        ("budget: {steps: 10000000000}", "budget.steps must be at most 1,000,000,000, got 10,0"),
        ("budget: {draw: 1000000000000000000000}", "budget.draw must be at most 1,000,000,000"),
        ("budget: {step: 3}", "unknown key 'step'; did you mean 'steps'?"),
        (
            "preset: quik",
            "preset must be quick or paper or smoke, got 'quik'; did you mean",
        ),
        ("track: vlm\npreset: quik", "line 2: preset must be quick or paper or smoke, got 'quik'"),
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
        ("budget: {clip: 0}", "budget.clip must be above 0, got 0"),
        ("budget: {lrs: [0.001, 0]}", "budget.lrs must be above 0, got (0.001, 0"),
        ("budget: {draw: 0}", "budget.draw is 0: with `resample: distinct` each seed draws that"),
        (
            "preset: paper\nbudget: {resample: distinct}",
            "line 2: budget.draw is 0: with `",
        ),
        ("seeds: 2\nmixture: [digits]", "line 2: mixture belongs to the track vlm"),
        ("budget: {precision: fp16}", "budget.precision must be fp32 or bf16, got 'fp16'"),
        ("budget: {train_items: -1}", "budget.train_items must not be negative"),
        ("budget: {trial_steps: 3}", "line 1: budget.trial_steps is 3: the track probe does not"),
        ("track: vlm\nbudget: {draw: 768}", "line 2: budget.draw is 768: the track vlm does not"),
        ("track: vlm\nbudget: {reader: ridge}", "budget.reader is ridge: the track vlm does not"),
        ("budget: 3", "budget must be keys and values, got 3"),
        ("methods: 3", "methods must hold names, got 3"),
        ("methods: []", "methods is empty"),
        ("settings: {mema: 3}", "settings.mema must be keys and values, got 3"),
        ("encoder: [a]", "encoder must be text, got ['a']"),
        ("track: vml", "track must be probe or vlm, got 'vml'; did you mean 'vlm'?"),
        (f"{VLM}5", "training must be keys and values, got 5"),
        (f"{VLM}{{legnth: 5}}", "line 2: unknown key 'legnth'; did you mean 'length'?"),
        (f"{VLM}{{length: abc}}", "training.length must be an integer, got 'abc'"),
        (f"{VLM}{{length: -1}}", "training.length must not be negative, got -1"),
        (f"{VLM}{{trained: 5}}", "training.trained must be a list of names, got 5"),
        (f"{VLM}{{trained:}}", "training.trained must be a list of names, got None"),
        (f"{VLM}{{stages: 5}}", "training.stages must be a list of stages with keys and"),
        (f"{VLM}{{stages: [align]}}", "training.stages must be a list of stages with keys and"),
        (f"{VLM}{{stages: {{steps: 3}}}}", "training.stages must be a list of stages with keys"),
        (f"{VLM}{{stages: [null]}}", "training.stages must be a list of stages with keys and"),
        (f"{VLM}{{stages: [{{step: 3}}]}}", "line 2: unknown key 'step'; did you mean 'steps'?"),
        (f"{VLM}{{stages: [{{steps: -3}}]}}", "training.stages[0].steps must be at least 1"),
        (f"{VLM}{{stages: [{{steps: 0}}]}}", "training.stages[0].steps must be at least 1, got 0"),
        (f"{VLM}{{stages: [{{}}, {{steps: x}}]}}", "stages[1].steps must be an integer, got 'x'"),
        (f"{VLM}{{stages: [{{batch: 0.5}}]}}", "stages[0].batch must be an integer, got 0.5"),
        (f"{VLM}{{stages: [{{lr: 0}}]}}", "training.stages[0].lr must be above 0, got 0"),
        (f"{VLM}{{stages: [{{lr: .nan}}]}}", "line 2: .nan is not a finite number"),
        (f"{VLM}{{stages: [{{lr: nan}}]}}", "stages[0].lr must be a finite number, got nan"),
        (f"{VLM}{{stages: [{{lr: true}}]}}", "stages[0].lr must be a number, got True"),
        (f"{VLM}{{stages: [{{warmup: -0.1}}]}}", "stages[0].warmup must not be negative"),
        (f"{VLM}{{stages: [{{mixture: 5}}]}}", "stages[0].mixture must be a list of names, got 5"),
        ("- a\n- b", "holds no study"),
        ("a: [", "is not YAML"),
        ("", "holds no study"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file(tmp_path, text, said):
    message = refused(tmp_path, text)
    assert said in message and "\n" not in message
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nseeds: three", "line 2: seeds must be an integer"),
        ("name: a\nbudget: 3", "line 2: budget must be keys and values"),
        ("budget:\n  batch: 8\n  steps: 0", "line 3: budget.steps must be at least 1"),
        ("seeds: 2\ntrack: vml", "line 2: track must be probe or vlm"),
        (f"{VLM}{{length: -1}}", "line 2: training.length must not be negative"),
        ("seeds: 2\nmargins: {suite: -1}", "line 2: margins.suite must be"),
        ("seeds: 2\nmargins: {siute: 1}", "line 2: margins: unknown key 'siute'"),
        ("seeds: 2\ncontrasts: [{metod: a}]", "line 2: contrasts[1]: unknown key 'metod'"),
        ("seeds: 2\ncontrasts: [{method: a}, {method: a}]", "line 2: contrasts: a comes twice"),
    ],
)
def test_a_mistake_in_a_value_names_its_line(tmp_path, text, said):
    assert f"mine.yaml, {said}" in refused(tmp_path, text)


def test_stages_may_name_one_part_with_other_settings(tmp_path):
    stages = "[{mixture: [digits]}, {mixture: ['digits[share=2]', textile]}]"
    study = read(tmp_path, f"{VLM}{{stages: {stages}}}\nmethods: [penultimate]")
    found = resolve(study, read_catalog(), absent=True)
    assert [card.name for card in found.mixture] == ["digits", "textile"]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ("{pixels: processor}", "training.pixels is processor, and words has no image processor"),
        ("{stages: [{trained: [lora]}, {trained: [language]}]}", "both language and lora"),
        ("{stages: [{lr: 1e-3}, {lr: 1e-4}]}\nbudget: {lrs: [1e-3, 1e-2]}", "none of budget.lrs"),
    ],
)
def test_what_a_language_model_cannot_have_is_said(tmp_path, training, said):
    study = read(tmp_path, VLM + training)
    language = describe_language("words", "", download=False)
    with pytest.raises(UserError, match=said):
        training_of(study, language, lambda names: MixtureCard(parts=()))


def test_a_language_model_in_another_format_is_named(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(UserError, match="language model hf:.* no model.safetensors"):
        describe_language(f"hf:{tmp_path}", "", download=False)


def test_numbers_of_a_stage_are_read_like_those_of_the_budget(tmp_path):
    text = "{length: 64, trained: fusion, stages: [{lr: 1e-3, weight_decay: 0, mixture: digits}]}"
    study = read(tmp_path, VLM + text)
    (stage,) = study.training["stages"]
    assert stage == {"lr": 1e-3, "weight_decay": 0, "mixture": ["digits"]}
    # An integer stays one: ids of trainings were made with it.
    assert type(stage["weight_decay"]) is int
    language = describe_language("words", "", download=False)
    found = training_of(study, language, lambda names: MixtureCard(parts=()))
    assert found.length == 64 and found.stages[0].lr == 1e-3
    assert found.stages[0].trained == ("fusion",)


def test_a_study_made_in_python_is_checked_as_one_of_a_file():
    language = describe_language("words", "", download=False)
    for stages in (["a"], [{"steps": -3}], [{"lr": float("nan")}], [None], 5):
        study = replace(PRESETS["vlm"]["quick"], training={"stages": stages})
        with pytest.raises(UserError, match=r"^training\.stages"):
            evaluated(study, language)
    with pytest.raises(UserError, match=r"training\.template must be .* got None"):
        study = replace(PRESETS["vlm"]["quick"], training={"template": None})
        training_of(study, language, lambda names: MixtureCard(parts=()))


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("baseline: penultimat", "no method 'penultimat'; did you mean 'penultimate'"),
        ("contrasts: [{method: mema, over: fin}]", "no group of tasks 'fin'; did you mean 'fine'"),
        ("contrasts: [{method: mem}]", "no method 'mem"),
    ],
)
def test_a_name_that_does_not_exist_is_found_before_anything_runs(tmp_path, text, said):
    study = read(tmp_path, f"{text}\nmethods: [mema, penultimate]\ntasks: [digits]")
    with pytest.raises(UserError) as told:
        resolve(study, read_catalog(), absent=True)
    assert said in told.value.message


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


# An edited plug-in never keeps its old scores: the run stops, or runs its cells again.

FILE = '''"""A method of one's own."""
from fusionbench.api import Fused, Fusion, method


@method("own", version=1)
class Own(Fusion):
    """{docstring}"""

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = (({tap},),)

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]))
'''
STUDY = ("run", "--preset", "smoke", "--tasks", "planted_layer", "--device", "cpu", "--quiet")


def write(folder, tap=1, docstring="One layer."):
    file = folder / "mine.py"
    file.write_text(FILE.format(tap=tap, docstring=docstring))
    return file


def arguments(file, out, *more):
    return (*STUDY, "--methods", "own,penultimate", "--plugin", file, "--out", out, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    in_process.fusionbench(*arguments(write(folder), folder / "results"))
    return folder


@pytest.fixture
def home(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


def one(out, label="own"):
    (found,) = [record for record in Store.open(out).records() if record.label == label]
    return found


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file edited after its records were made",
    "the run stops with both hashes; `--again` moves the old records aside",
)
def test_a_run_stops_with_what_changed_and_what_to_do_whatever_task_it_asks_for(home):
    out = home / "results"
    before = one(out).provenance["plugin_files"]["mine.py"]
    file = write(home, tap=4)
    for more in ((), ("--tasks", "planted_random")):
        code, _, said = in_process.run(*arguments(file, out, *more))
        assert code == 2, said
        error, hint = said.strip().splitlines()
        assert "method 'own' was edited" in error and str(file) in error
        assert f"1 records in {out} were made by {before}" in error
        assert "--again runs" in hint and "raise version=1" in hint and "superseded/" in hint
    assert (
        f"note: method 'own' was edited: {file}"
        in in_process.run(*arguments(file, out, "--dry-run"))[2]
    )


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file edited after its records were made",
    "the run stops with both hashes; `--again` moves the old records aside",
)
def test_again_runs_its_cells_alone_and_keeps_the_old_record_out_of_every_table(home):
    out = home / "results"
    old = one(out)
    assert superseded(Store.open(out)) == {}
    said = in_process.fusionbench(*arguments(write(home, tap=4), out, "--again"))
    assert "1 cells run, 1 were there" in said
    new = one(out)
    assert new.id == old.id and new.taps == ((4,),) != old.taps
    assert [str(problem) for problem in Store.open(out).problems] == []
    assert superseded(Store.open(out)) == {"own on planted_layer": 1}
    kept = (out / "superseded" / f"{old.id}.1.json").read_text()
    assert old.outcomes in kept and (out / "superseded" / f"{old.id}.1.outcomes.bin").is_file()
    status = in_process.fusionbench("status", out)
    assert "superseded: 1 of own on planted_layer" in status and "2 done" in status
    # The same file again is no change, and a second edit is kept beside the first.
    again = in_process.fusionbench(*arguments(write(home, tap=4), out, "--again"))
    assert "0 cells run, 2 were there" in again
    in_process.fusionbench(*arguments(write(home, tap=2), out, "--again"))
    assert superseded(Store.open(out)) == {"own on planted_layer": 2}


def test_comments_and_docstrings_are_no_change_and_a_new_version_keeps_both(home):
    out = home / "results"
    file = write(home, docstring="The same layer, told better.")
    file.write_text(file.read_text() + "\n\n# A comment.\n")
    assert "0 cells run, 2 were there" in in_process.fusionbench(*arguments(file, out))
    file = write(home, tap=4)
    file.write_text(file.read_text().replace("version=1", "version=2"))
    assert "1 cells run, 1 were there" in in_process.fusionbench(*arguments(file, out))
    assert superseded(Store.open(out)) == {}


def test_a_compact_folder_is_told_to_run_elsewhere(home):
    in_process.fusionbench("merge", home / "results", "-o", home / "compact")
    code, _, said = in_process.run(*arguments(write(home, tap=4), home / "compact", "--again"))
    assert code == 2 and "is compact" in said and "--out DIR" in said


def test_the_code_of_a_file_has_one_hash_whatever_its_comments(tmp_path):
    first, second, third = (tmp_path / f"{name}.py" for name in "abc")
    first.write_text("def f(x):\n    return x + 1\n")
    second.write_text('"""Text."""\n\n\ndef f(x):\n    # why\n    return (x + 1)\n')
    third.write_text("def f(x):\n    return x + 2\n")
    assert code_hash(third) != code_hash(first)
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    assert code_hash(broken) == ""


def test_what_belongs_to_a_record_is_set_aside_with_it(tmp_path):
    from vlm_records import write_vlm

    folder = write_vlm(tmp_path / "vlm", methods=("blind", "mema"), tasks=("digits",), pope=False)
    record = next(one for one in Store.open(folder).records() if one.spec.method == "mema")
    (folder / "models").mkdir(exist_ok=True)
    weights = folder / "models" / f"{record.model}.safetensors"
    weights.write_bytes(b"weights")
    assert set_aside(record, folder) and not set_aside(record, folder)
    store = Store.open(folder)
    assert record.id not in store.finished() and not weights.exists()
    assert superseded(store) == {"mema on digits": 1}
    kept = {file.name for file in (folder / "superseded").iterdir()}
    assert f"{record.model}.1.models.safetensors" in kept
    assert f"{record.id}.1.outcomes.bin" in kept
    assert any(name.startswith(f"{record.id}.1.answers") for name in kept)
