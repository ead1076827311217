"""Cases of the recorded kinds at other sizes and seeds pass without a change of code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from parity_cases import SHIPPED, cases, mismatches
from parity_drawn import recorded, write

HERE = Path(__file__).parent

TOWER = {"dim": 24, "layers": 4, "heads": 3, "mlp": 20, "image": 30, "patch": 10}
LLAMA = {"llm": 18, "llm_mlp": 14, "llm_layers": 6, "llm_heads": 3}
# A recorded case, and what is different: odd widths, grids, depths, batches, groups and strings.
PLAN = [
    ("mema_dsu_random", {"dim": 21, "reduction_ratio": 50, "N": 5}),
    ("mema_dsu_aswritten", {"dim": 12, "reduction_ratio": 1, "N": 1}),
    ("mema_gate_random", {"dim": 19, "T": 7}),
    ("mema_gate_aswritten_adam200", {"dim": 9, "T": 5, "steps": 40, "lr": 0.003}),
    ("mema_loop_random", TOWER | {"llm": 17, "reduction_ratio": 5, "images_per_sample": [1, 3]}),
    ("mema_loop_aswritten", TOWER | {"layers": 2, "images_per_sample": [1, 1, 1]}),
    ("mema_end_to_end", TOWER | {"llm": 20, "llm_heads": 5, "text_len": 19, "crops": 3,
      "no_answer_sample": 1, "text_only_sample": 0, "align_loss_weight": 0.7, "batch": 4}),
    ("mema_end_to_end", TOWER | {"reduction_ratio": 2, "text_only_sample": None, "vocab": 31}),
    ("dc_sti_clip", {"dim": 7, "llm": 9, "B": 3, "tokens": 26}),
    ("dc_sci_clip", {"dim": 5, "llm": 6, "B": 1, "tokens": 8, "states": 28}),
    ("dc_dci_clip", {"dim": 3, "llm": 4, "B": 4, "tokens": 3}),
    ("dc_sti_siglip", {"dim": 7, "llm": 9, "B": 3, "tokens": 25}),
    ("dc_sci_siglip", {"dim": 5, "llm": 6, "B": 1, "tokens": 9}),
    ("dc_dci_siglip", {"dim": 3, "llm": 4, "B": 4, "tokens": 7}),
    ("dc_video_temporal", {"dim": 5, "llm": 7, "T": 4, "tokens": 9}),
    ("mmfuser_random", {"dim": 12, "llm": 10, "B": 3, "tokens": 26, "n_heads": 6, "n_points": 3,
      "select_layer": [-20, -9, -2], "n_levels": 2}),
    ("mmfuser_random", {"dim": 8, "n_heads": 4, "select_layer": [-3, -12, -25], "n_levels": 3}),
    ("mmfuser_random", {"select_layer": [2, 11, 23], "n_levels": 1, "tokens": 10, "states": 26}),
    ("mmfuser_deformable_attention", {"dim": 18, "n_levels": 3, "n_heads": 3, "n_points": 2,
      "shapes": [[5, 3], [2, 7], [1, 4]], "query_grid": 3, "B": 1}),
    ("mmfuser_offsets_init", {"dim": 20, "n_levels": 3, "n_heads": 5, "n_points": 2}),
    ("lsf_external_direct", {"dim": 6, "llm": 5, "B": 3, "tokens": 6, "strategies": ["all", "18"]}),
    ("lsf_external_modular", {"dim": 32, "llm": 6, "B": 2, "tokens": 10,
      "strategies": ["former", "all"]}),
    ("lsf_internal_direct_3layers", LLAMA | {"dim": 7, "B": 3, "tokens": 8, "text_len": 11,
      "image_start": [None, 2, 11], "pad_last": 3}),
    ("lsf_internal_direct_former", LLAMA | {"strategy": "latter", "llm_layers": 3, "dim": 5}),
    ("lsf_internal_direct_former", LLAMA | {"strategy": "former", "llm_layers": 14, "tokens": 4}),
    ("lsf_internal_direct_former", LLAMA | {"strategy": "latter", "llm_layers": 14, "tokens": 4}),
    ("lsf_internal_direct_3layers", LLAMA | {"strategy": "18", "llm_layers": 5, "text_len": 6}),
    ("lsf_internal_modular", LLAMA | {"strategy": "3-18-23", "dim": 7, "B": 3, "tokens": 6,
      "image_start": [4, None, 0], "text_len": 9}),
    ("lsf_internal_modular", LLAMA | {"strategy": "18", "llm_layers": 3}),
    ("lsf_internal_modular_layer_random", LLAMA | {"B": 3, "T": 11, "n_img": 4, "pad_last": 1}),
    ("deepstack_llama", LLAMA | {"start": 0, "interval": 2, "n_stack": 5, "T": 14, "n_img": 5,
      "image_pos": [[0, 1], [1, 11]]}),
    ("deepstack_llama", LLAMA | {"start": 2, "interval": 3, "T": 17, "n_img": 3, "B": 3,
      "image_pos": [[2, 1], [2, 6], [0, 0]]}),
    ("deepstack_sampling", {"side": 3, "c": 2, "num_crops": 7, "grids": [[3, 2], [1, 1], [2, 3]],
      "sampling": ["1d", "2d"]}),
    ("qwen3vl_deepstack", {"dim": 6, "llm": 18, "llm_mlp": 14, "llm_layers": 3, "llm_heads": 6,
      "kv_heads": 3, "head_dim": 6, "mrope": [1, 1, 1], "blocks": 9, "visual_indexes": [0, 8],
      "patches": 24, "T": 13, "image_start": 5}),
    ("igva_random", {"dim": 9, "llm": 7, "B": 3, "tokens": 14, "agg_hidden": 10, "agg_heads": 5,
      "groups": [[2, 5], [0, 9, 24], [7]], "base_layer": -4, "num_transformers": 3,
      "sentence_dim": 6}),
    ("igva_random", {"base_layer": 3, "groups": [[3], [24]], "num_transformers": 1}),
    ("tgif_selector_random", {"dim": 7, "llm": 9, "layers": 3, "B": 5, "patches": 5}),
    ("tgif_end_to_end", TOWER | {"llm": 20, "llm_heads": 5, "batch": 3, "text_len": 17,
      "alpha": 0.02}),
    ("tgif_end_to_end", TOWER | {"layers": 2, "alpha": 0.0}),
    ("dla_dsu_block", {"dim": 22, "layers": 7, "B": 2}),
    ("dla_dsu_block", {"dim": 7, "layers": 2, "B": 1}),
    ("dianet_lstm_cell", {"dim": 27, "layers": 3, "B": 4}),
    ("dla_light_layer_attention", {"dim": 30, "dim_perhead": 5, "B": 3, "h": 3, "w": 5}),
    ("dla_light_layer_attention", {"dim": 200, "dim_perhead": 100, "h": 2, "w": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", cases(SHIPPED), ids=lambda case: case.id)
def test_the_plain_reference_reproduces_what_the_official_code_gave(case):
    found = recorded(case)
    assert mismatches(case, found) == []
    assert not found.keys() - case.tensors.keys()


def replay_all(folder: Path) -> str:
    """What pytest says of the parity tests over this folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [*command, "-rf", str(HERE / "test_parity_methods.py")],
        capture_output=True, text=True, check=False, cwd=HERE.parent.parent,
        env=os.environ | {"FUSIONBENCH_PARITY_DIR": str(folder)},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_another_folder_of_the_same_form_passes_whatever_its_sizes(tmp_path):
    count = write(tmp_path, PLAN, seeds=(1, 2))
    # One that must not pass: its settings name another layer than its numbers come from.
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    [wrong] = [
        entry for entry in manifest["cases"] if entry["id"].startswith("mmfuser_random_17_2")
    ]
    wrong["config"]["select_layer"][0] -= 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    said = replay_all(tmp_path)
    assert f"1 failed, {count - 1} passed" in said, said
    assert re.findall(r"FAILED \S+\[(\S+)\]", said) == [wrong["id"]]


def test_every_recorded_kind_is_tried_at_another_size():
    kinds = {(case.facts["method"], case.symbol.split()[0]): case.id for case in cases(SHIPPED)}
    tried = {name for name, _ in PLAN}
    seen = {
        (case.facts["method"], case.symbol.split()[0])
        for case in cases(SHIPPED)
        if case.id in tried
    }
    assert seen == set(kinds)
