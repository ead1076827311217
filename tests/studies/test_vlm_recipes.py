"""The recipes of the multimodal track: published numbers, each with its source beside it."""

import math
import re
from pathlib import Path

import pytest

from fusionbench.records.cell import Budget
from fusionbench.records.yaml_files import read_section
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.study.mixture import parse_mixture
from fusionbench.study.study import LOCAL_TASKS

FOLDER = Path(__file__).resolve().parents[2] / "studies"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if "track: vlm" in path.read_text())
KEYS = (
    "track preset name encoder language model methods settings tasks seeds mixture budget training "
    "baseline contrasts margins note"
).split()
TRAINING = "query mean pixels projector trained template length grouped stages".split()
STAGE = "name mixture template trained steps batch lr weight_decay warmup".split()
CHOICES = {
    "query": ("question", "prompt", "conversation"),
    "mean": ("token", "sample"),
    "pixels": ("squash", "pad", "processor"),
    "projector": ("plain", "normed"),
    "template": ("words", "plain", "llava15", "chat"),
}
TRAINED = {"fusion", "projector", "language", "lora"}
NUMBER = re.compile(r":\s*\[?[0-9]")
pytestmark = pytest.mark.skipif(not FILES, reason="an installed wheel has no recipes")


def read(name: str) -> dict:
    return read_section(FOLDER / f"{name}.yaml", "study", hint="a recipe")


def stages(values: dict) -> list[dict]:
    return [values["training"], *values["training"].get("stages", [])]


def test_every_recipe_of_the_track_is_there():
    names = "bench dense_connector llava15 mema mema_batch16".split()
    names += "mini_dinov2 mini_llava mini_local mini_smollm2".split()
    assert [path.stem for path in FILES] == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_has_known_fields_and_names(path):
    values = read(path.stem)
    values.check_keys(KEYS, needed=("track", "preset", "name", "tasks", "training"))
    assert values["track"] == "vlm" and values["name"] == path.stem
    assert set(values["budget"]) <= {name for name in Budget.__dataclass_fields__}
    values["training"].check_keys(TRAINING)
    for stage in values["training"].get("stages", []):
        stage.check_keys(STAGE)
    for part in stages(values):
        for key, allowed in CHOICES.items():
            assert part.get(key, allowed[0]) in allowed
        assert set(part.get("trained", [])) <= TRAINED
        parse_mixture(part.get("mixture", []))
    parse_mixture(values.get("mixture", []))
    select_methods(read_catalog(), values.get("methods", []), values.get("settings"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_of_a_recipe_has_its_source_beside_it(path):
    for line in path.read_text().splitlines():
        if NUMBER.search(line.split("#")[0]) and "seeds_per_pass" not in line:
            assert "#" in line, f"{path.name}: {line}"


PUBLISHED = [
    ("llava15", 0, {"batch": 256, "lr": 1e-3, "weight_decay": 0, "warmup": 0.03}, 558_000),
    ("llava15", 1, {"batch": 128, "lr": 2e-5, "weight_decay": 0, "warmup": 0.03}, 665_000),
    ("dense_connector", 0, {"batch": 256, "lr": 1e-3, "weight_decay": 0, "warmup": 0.03}, 558_000),
    ("dense_connector", 1, {"batch": 128, "lr": 2e-5, "weight_decay": 0, "warmup": 0.03}, 665_000),
    ("mini_llava", 0, {"batch": 256, "lr": 1e-3, "weight_decay": 0.05}, 558_000),
    ("mini_llava", 1, {"batch": 128, "lr": 2e-5, "weight_decay": 0, "warmup": 0.03}, 665_000),
]


@pytest.mark.parametrize(("name", "stage", "numbers", "rows"), PUBLISHED)
def test_a_stage_is_one_epoch_with_the_published_numbers(name, stage, numbers, rows):
    found = read(name)["training"]["stages"][stage]
    assert {key: found[key] for key in numbers} == numbers
    assert found["steps"] == math.ceil(rows / found["batch"])
    template, trained = (("plain", 2), ("llava15", 3))[stage]
    assert found["template"] == template and len(found["trained"]) == trained


def test_the_warm_up_of_mini_llava_is_200_steps():
    first = read("mini_llava")["training"]["stages"][0]
    assert round(first["warmup"] * first["steps"]) == 200


@pytest.mark.parametrize(("name", "batch"), [("mema", 32), ("mema_batch16", 16)])
def test_mema_trains_its_memory_alone_on_20k_rows(name, batch):
    values = read(name)
    budget, training = values["budget"], values["training"]
    assert budget["batch"] == batch and budget["steps"] * batch == 20_000
    assert budget["lrs"] == [1e-4] and budget["weight_decay"] == 0
    assert values["settings"] == {"mema": {"alignment": 0.1}}
    assert training["trained"] == ["fusion"]
    assert (training["query"], training["mean"]) == ("prompt", "sample")


def test_the_two_files_of_mema_differ_in_batch_and_steps_only():
    one, two = read("mema"), read("mema_batch16")
    for values in (one, two):
        del values["name"], values["budget"]["batch"], values["budget"]["steps"]
    assert one == two


def test_the_local_recipe_names_the_default_mixture():
    assert tuple(read("mini_local")["mixture"]) == LOCAL_TASKS


def test_the_documentation_names_every_recipe():
    text = (FOLDER.parent / "docs" / "vlm.md").read_text()
    assert not [path.name for path in FILES if f"studies/{path.name}" not in text]
