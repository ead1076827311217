"""`--preset smoke` with a study file: the same study, two steps in every stage."""

from pathlib import Path

import pytest

from fusionbench.api.errors import UserError
from fusionbench.cli.run import assemble
from fusionbench.study.study import PRESETS, SMOKE, VLM_SMOKE

NO_FLAGS = {"methods": (), "tasks": (), "encoder": "", "seeds": None, "settings": ()}
STAGES = """
track: vlm
preset: paper
methods: [mema]
seeds: 4
mixture: [digits]
budget: {steps: 900, batch: 64, precision: bf16, image_size: 336}
training:
  query: prompt
  stages:
    - {name: one, steps: 700, batch: 256, lr: 1.0e-3, warmup: 0.03}
    - {name: two, trained: [fusion]}
"""


@pytest.fixture
def smoke(tmp_path):
    def call(text: str, preset: str = "smoke", **flags):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return assemble(Path(file), preset, **{**NO_FLAGS, **flags})

    return call


def test_a_study_of_probes_keeps_all_but_its_budget_and_seeds(smoke):
    text = "methods: [mema]\ntasks: [digits]\nseeds: 7\nbudget: {steps: 500}\n"
    small, whole = smoke(text), smoke(text, "")
    assert small.budget == SMOKE.budget != whole.budget
    assert (small.seeds, whole.seeds) == (1, 7)
    kept = ("name", "track", "encoder", "methods", "tasks", "settings", "baseline", "margins")
    assert all(getattr(small, name) == getattr(whole, name) for name in kept)


def test_every_stage_of_a_model_is_cut_and_keeps_the_rest(smoke):
    small, whole = smoke(STAGES), smoke(STAGES, "")
    assert small.budget == VLM_SMOKE.budget and small.seeds == 1
    first, second = small.training["stages"]
    assert first == {"name": "one", "steps": 2, "batch": 8, "lr": 1e-3, "warmup": 0.03}
    assert second == {"name": "two", "trained": ["fusion"], "steps": 2, "batch": 8}
    assert small.training["query"] == "prompt" and small.mixture == whole.mixture
    # The file's own study is as it was.
    assert (
        whole.training["stages"][0]["steps"] == 700 and "steps" not in whole.training["stages"][1]
    )


def test_flags_come_after_the_preset(smoke):
    assert smoke("seeds: 4\n", seeds=3).seeds == 3
    assert smoke(STAGES, tasks=["digits"]).tasks == ("digits",)


@pytest.mark.parametrize("name", sorted({name for track in PRESETS.values() for name in track}))
def test_another_preset_and_a_file_exclude_each_other(name, smoke):
    if name != "smoke":
        with pytest.raises(UserError, match="exclude each other, but for --preset smoke"):
            smoke("seeds: 1\n", name)
