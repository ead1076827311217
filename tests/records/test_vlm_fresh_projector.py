"""Rows of a new projector have a table of their own, beside those of a checkpoint's projector."""

from dataclasses import replace

from toy_records import outcomes, record, spec

from fusionbench.records.cell import FRESH, Stage, Training
from fusionbench.records.scores import score_tables

STAGE = Stage(parts=("digits",), rows="r", count=8, template="llava15", trained=("fusion",))
TRAINING = Training(language="llava:x", language_weights="w", stages=(STAGE,), projector="plain")


def cell(method: str, *notes: str, status: str = "done"):
    own = replace(spec(method, "digits", 0), track="vlm", training=TRAINING)
    made = record(own, outcomes(0.5, 0), label=method, notes=notes)
    return made if status == "done" else replace(made, status="skipped", score=None)


def test_a_wider_method_is_never_in_the_table_of_the_checkpoints_projector():
    records = [
        cell("penultimate"),
        cell("concat", FRESH, "another note"),
        cell("blind"),
        cell("token_packer", status="skipped"),
    ]
    kept, fresh = sorted(score_tables(records), key=lambda table: table.condition.fresh)
    assert set(kept.methods) == {"penultimate", "blind", "token_packer"}
    assert fresh.methods == ("concat",)
    assert FRESH in fresh.condition.title and FRESH not in kept.condition.title
    assert kept.condition == replace(fresh.condition, fresh=False)
