"""Recorded cells as studies, so that they can be run again, and how far a second run agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.states import of_request, wanted
from fusionbench.records.store import Store
from fusionbench.study.study import PRESETS, PROBE, Study, as_plain, from_plain

SCORE_TOLERANCE = 0.02
"""Largest difference of the scores of two machines: rounding moves answers that were close."""
LOSS_TOLERANCE = 1e-3
"""Largest relative difference of the training loss at its first and last step in float32."""
_LOOSE = 20.0
"""The same in bfloat16 is so many times larger."""


def studies_of(store: Store, records: Sequence[CellRecord]) -> list[tuple[Study, list[CellRecord]]]:
    """Studies whose cells include these records, each with its records.

    Raises UserError for a record of the track `vlm` that no request of the folder names: what its
    model was trained on stands in the request alone.
    """
    found: dict[str, tuple[Study, list[CellRecord]]] = {}
    requests = [(one, set(wanted(one))) for one in reversed(store.history.requests())]
    encoders = {str(one.study.get("encoder")) for one, _ in requests}
    for record in records:
        place = (record.label or record.spec.method, record.spec.task, record.spec.seed)
        study = next(
            (
                from_plain(request.study)
                for request, places in requests
                if place in places and place in of_request(request, [record], encoders)
            ),
            None,
        )
        study = study or _alone(record)
        found.setdefault(repr(as_plain(study)), (study, []))[1].append(record)
    return [(narrowed(study, group), group) for study, group in found.values()]


def narrowed(study: Study, records: Sequence[CellRecord]) -> Study:
    """The study with the methods, tasks and seeds of these records."""
    return replace(
        study,
        methods=tuple(dict.fromkeys(one.label or one.spec.method for one in records)),
        tasks=tuple(dict.fromkeys(one.spec.task for one in records)),
        seeds=max(one.spec.seed for one in records) + 1,
        # A label holds all changed settings.
        settings={},
        contrasts=(),
        references=False,
    )


def _alone(record: CellRecord) -> Study:
    spec = record.spec
    if spec.track != PROBE or record.source:
        where = f"imported from {record.source}" if record.source else f"of the track {spec.track}"
        raise UserError(
            f"cell {record.id} is {where}, and no request of the folder names it",
            "name the folder that it was run in",
        )
    return Study(name="again", encoder=spec.encoder, budget=spec.budget)


def study_text(study: Study) -> str:
    """The study as the text of a file that `run` takes."""
    start = as_plain(PRESETS[study.track]["quick"])
    plain = as_plain(study)
    values: dict[str, Any] = {"preset": "quick", "track": study.track, "name": study.name}
    values |= _changes(plain, start)
    values["budget"] = _changes(plain["budget"], start["budget"])
    # A file declares its own contrasts, those of the preset too.
    values["contrasts"] = plain["contrasts"]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _changes(values: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != start[name]}


def differences(
    first: CellRecord,
    second: CellRecord,
    outcomes: tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]],
    *,
    exact: bool,
) -> list[str]:
    """What two runs of a cell differ in; empty where they agree.

    `exact`: every outcome and the losses must be equal, as on one processor with one software.
    Else score and losses may differ by the tolerances above.
    """
    found = []
    if first.status != second.status:
        return [f"status {first.status}, now {second.status}"]
    if exact:
        changed = int((outcomes[0] != outcomes[1]).sum()) if _same_length(outcomes) else -1
        found += [f"{changed} of {len(outcomes[0])} outcomes"] if changed else []
        found += ["training loss"] if first.loss != second.loss else []
        return found
    scores = (first.score or 0.0, second.score or 0.0)
    if abs(scores[0] - scores[1]) > SCORE_TOLERANCE or not _same_length(outcomes):
        found.append(f"score {scores[0]:.4f}, now {scores[1]:.4f}")
    most = LOSS_TOLERANCE * (_LOOSE if first.spec.budget.precision == "bf16" else 1.0)
    for name, at in (("first", 0), ("last", -1)):
        if first.loss and second.loss:
            one, two = first.loss[at], second.loss[at]
            if not abs(one - two) <= most * max(abs(one), abs(two), 1e-12):
                found.append(f"{name} loss {one:.6g}, now {two:.6g}")
    return found


def _same_length(outcomes: tuple[np.ndarray, np.ndarray]) -> bool:
    return len(outcomes[0]) == len(outcomes[1])


def same_machine(first: CellRecord, second: CellRecord) -> bool:
    """Whether two records come from one kind of processor, without a GPU, and one software."""
    one, two = first.provenance, second.provenance
    hardware = one.get("hardware", {}), two.get("hardware", {})
    return (
        hardware[0] == hardware[1]
        and hardware[0].get("device") == "cpu"
        and one.get("software") == two.get("software")
    )
