"""What names, globs and settings choose, and parts of a plan: shards and single cells."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import in_process
import pytest
from plugin_files import GOOD

from fusionbench.api.errors import UserError
from fusionbench.api.types import ReaderShape, StackShape, Unsupported
from fusionbench.harness.model import build_fusion
from fusionbench.records.cell import Budget
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods, select_tasks
from fusionbench.study.again import study_text
from fusionbench.study.parts import one_cell, parse_shard, trainings
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.reading import from_plain, load_study, with_overrides
from fusionbench.study.study import PAPER, PRESETS, SMOKE, as_plain
from fusionbench.study.training import LanguageCard, evaluated


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


# Parts of a plan: shards that share nothing and miss nothing, and single cells.

STUDY = (
    "run", "--preset", "smoke", "--seeds", "2", "--tasks", "planted_layer,planted_random",
    "--methods", "penultimate,scalar_mix,mema",
)  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    study = with_overrides(
        SMOKE, methods=["penultimate", "scalar_mix", "mema"], seeds=2,
        tasks=["planted_layer", "planted_random"],
    )  # fmt: skip
    return make_plan(resolve(study, read_catalog()), ())


def ids(plan):
    return {cell.spec.id for cell in plan.cells}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_shards_have_nothing_in_common_and_everything_together(plan, count):
    parts = [parse_shard(f"{i}/{count}").of(plan) for i in range(1, count + 1)]
    assert sum(len(part.cells) for part in parts) == len(plan.cells) == 12
    assert set().union(*map(ids, parts)) == ids(plan)
    for part in parts:
        assert {cell.spec.id for cell in part.pending} <= ids(part)
        # All seeds of a method on a task are in one part: they share their tuning runs.
        assert all(len(cells) == 2 for cells in trainings(part))


def test_more_shards_than_trainings_are_one_line(plan):
    with pytest.raises(UserError, match="has 6 trainings"):
        parse_shard("7/9").of(plan)


def test_a_shard_does_not_depend_on_what_is_finished(plan):
    done = {cell.spec.id for cell in plan.cells[::2]}
    later = make_plan(plan.resolved, done)
    for i in (1, 2, 3):
        shard = parse_shard(f"{i}/3")
        assert ids(shard.of(later)) == ids(shard.of(plan))
        assert not {cell.spec.id for cell in shard.of(later).pending} & done


def test_shards_take_turns_with_the_expensive_methods(plan):
    for i in (1, 2):
        cells = parse_shard(f"{i}/2").of(plan).cells
        assert sum(cell.chosen.card.in_encoder for cell in cells) == 2


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "a/b", "1/3/5", "-1/3", "1/0"])
def test_what_is_no_shard_is_one_line(text):
    with pytest.raises(UserError, match="--shard"):
        parse_shard(text)


def test_one_cell_is_the_only_one_and_an_unknown_one_is_an_error(plan):
    wanted = plan.cells[3].spec.id
    assert ids(one_cell(plan, wanted)) == {wanted}
    with pytest.raises(UserError, match="no cell"):
        one_cell(plan, "0" * 20)


@pytest.mark.parametrize(
    "study", [*PRESETS["probe"].values(), *PRESETS["vlm"].values()], ids=lambda s: s.track + s.name
)
def test_a_study_survives_json_and_a_file(study, tmp_path):
    assert from_plain(json.loads(json.dumps(as_plain(study)))) == study
    changed = with_overrides(study, settings=["mema.reduction=2"], seeds=7)
    file = tmp_path / "study.yaml"
    file.write_text(study_text(changed))
    assert as_plain(load_study(file)) == as_plain(changed)


def test_a_study_stored_before_a_field_came_has_the_value_of_that_time():
    values = as_plain(PAPER)
    for name in ("random_layer", "vector_lr", "draw", "seeds_per_pass"):
        del values["budget"][name]
    for name in ("contrasts", "references"):
        del values[name]
    found = from_plain(values)
    defaults = Budget(steps=1, batch=1, lrs=(1.0,))
    assert found.budget == replace(
        PAPER.budget, vector_lr=defaults.vector_lr, seeds_per_pass=defaults.seeds_per_pass
    )
    assert found.contrasts == () and found.seeds == PAPER.seeds and found.references


def test_a_setting_that_stands_twice_is_refused(catalog):
    with pytest.raises(UserError, match="reduction stands twice in 'mema"):
        labels(catalog, "mema[reduction=2,reduction=4]")


def test_a_study_that_trains_nothing_survives_its_request_and_a_file(tmp_path):
    bench = load_study(Path(__file__).resolve().parent.parent.parent / "studies" / "bench.yaml")
    tower = SimpleNamespace(tiled=False)
    model = LanguageCard(name="llava:x", weights="w", checkpoint=tower, template="llava15")
    asked = evaluated(bench, model)
    assert (asked.budget.steps, asked.budget.tuning_seeds, asked.mixture) == (0, 0, ())
    file = tmp_path / "study.yaml"
    file.write_text(study_text(asked))
    for again in (from_plain(json.loads(json.dumps(as_plain(asked)))), load_study(file)):
        assert evaluated(again, model) == asked
    # Where something is trained, 0 steps are an error as ever.
    with pytest.raises(UserError, match=r"budget\.steps must be at least 1"):
        from_plain(as_plain(replace(asked, training={})))


@pytest.mark.parametrize("values", [{}, {"budget": 3}, {"budget": {"steps": "x"}}])
def test_what_is_no_study_is_one_line(values):
    with pytest.raises(UserError):
        from_plain(values)


def stored(folder: Path) -> dict[str, bytes]:
    """Everything of a merged folder but times: records without them, and all other files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".md", ".csv", ".tex", ".html", ".json", ".svg"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    for record in Store.open(folder).records():
        found[record.id] = Store.open(folder).outcome_bytes(record.id, record.outcomes)
    return found


@pytest.mark.thorough
@pytest.mark.fault("clusters", "three shards merged", "the whole, byte for byte")
def test_the_merge_of_three_shards_is_the_whole_byte_for_byte(tmp_path):
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        in_process.fusionbench(*STUDY, "--shard", f"{i}/3", "--out", part, "--quiet")
    cells = [set(Store.open(part).finished()) for part in parts]
    assert all(not a & b for a, b in itertools.combinations(cells, 2)) and all(cells)
    in_process.fusionbench(*STUDY, "--out", tmp_path / "whole", "--quiet")
    in_process.fusionbench("merge", *parts, "-o", tmp_path / "merged")
    in_process.fusionbench("merge", tmp_path / "whole", "-o", tmp_path / "compact")
    for name in ("merged", "compact"):
        in_process.fusionbench("report", tmp_path / name, figures=True)
    merged, compact = stored(tmp_path / "merged"), stored(tmp_path / "compact")
    assert merged.keys() == compact.keys() and len(merged) > 12
    assert any(name.endswith(".svg") for name in merged)
    assert [name for name in merged if merged[name] != compact[name]] == []
    # A folder in which one shard is missing says so.
    shutil.rmtree(tmp_path / "merged")
    in_process.fusionbench("merge", *parts[:2], "-o", tmp_path / "merged")
    said = in_process.fusionbench("status", tmp_path / "merged")
    assert f"{12 - len(cells[2])} done" in said and f"{len(cells[2])} left" in said


# Sizes and weights that no method can have: an error that names the setting, and no other.

BUILT_IN = read_catalog()
SHAPE = StackShape(
    layers=12, dim=64, grid=(8, 8), prefix=1, query_dim=64, mlp=256,
    reader=ReaderShape(layers=4, width=64, heads=4, mlp=128),
)  # fmt: skip
SIZES = {
    "blocks", "copies", "count", "every", "head", "heads", "interval", "merge", "pool", "points",
    "queries", "rank", "reduction", "rounds", "scale", "times", "top",
}  # fmt: skip
"""Whole numbers that count something, of which there is at least one."""
WEIGHTS = {"alpha", "alignment", "balance", "weight"}
CLASSES = list({card.cls: card for card in BUILT_IN.methods.values()}.values())
NUMBERS = [
    (card.name, setting, value)
    for card in CLASSES
    for setting, default in card.settings.items()
    if isinstance(default, int | float) and not isinstance(default, bool)
    for value in (type(default)(-1), type(default)(0))
]


@pytest.mark.parametrize(("name", "setting", "value"), NUMBERS)
def test_a_number_is_used_or_refused_in_words(name, setting, value):
    card = BUILT_IN.methods[name]
    sized = setting in SIZES and isinstance(value, int) and value < 1
    refused = ""
    try:
        build_fusion(load_method(card), {**card.as_run, setting: value}, SHAPE)
    except (ValueError, Unsupported) as error:
        refused = str(error)
    if sized or (setting in WEIGHTS and value < 0):
        assert f"{setting} must be at least" in refused or "layer must be" in refused, refused


def test_the_settings_above_are_those_of_methods():
    known = {setting for card in CLASSES for setting in card.settings}
    assert known >= SIZES | WEIGHTS and len(NUMBERS) > 60
