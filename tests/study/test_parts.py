"""Parts of a plan: shards that share nothing and miss nothing, and single cells."""

import itertools
import json
import shutil
from pathlib import Path

import in_process
import pytest

from fusionbench.api.errors import UserError
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.again import study_text
from fusionbench.study.parts import one_cell, parse_shard, trainings
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import (
    PRESETS,
    SMOKE,
    as_plain,
    from_plain,
    load_study,
    with_overrides,
)

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
