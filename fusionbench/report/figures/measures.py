"""What methods cost: parameters from the records, FLOPs and latency where they were measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from jaxtyping import Float

from fusionbench.report.figures.material import Material
from fusionbench.report.figures.profiles import alike

_MEASURED = (
    ("flops_over_encoder", "FLOPs over the encoder"),
    # Timed in turn with the encoder: a machine that slows down from one method to the next does
    # not move it.
    ("latency_over_encoder_ms", "ms a batch over the encoder"),
)

Costs = Float[np.ndarray, " method"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One measure of cost: a value per method with its spread, NaN where it was not measured."""

    key: str
    title: str
    value: Float[np.ndarray, " method"]
    low: Float[np.ndarray, " method"]
    high: Float[np.ndarray, " method"]


def measures(material: Material, rows: Sequence[int]) -> list[Axis]:
    """Parameters from the records; FLOPs and latency where somebody measured them."""
    fusion = _parameters(material, rows, ("fusion",))
    trained = _parameters(material, rows, ("fusion", "projector"))
    axes = [
        Axis(key="parameters_fusion", title="parameters of the fusion", value=fusion,
             low=fusion, high=fusion),
        Axis(key="parameters_fusion_projector", title="fusion and projector", value=trained,
             low=trained, high=trained),
    ]  # fmt: skip
    axes += [_measured(material, rows, key, title) for key, title in _MEASURED]
    return [axis for axis in axes if not np.isnan(axis.value).all()]


def _parameters(
    material: Material, rows: Sequence[int], parts: Sequence[str]
) -> Float[np.ndarray, " method"]:
    """The median over tasks: the projector's width may follow the task's encoder."""
    counts = [
        [sum(record.parameters.get(part, 0) for part in parts)
         for record in material.table.row(row) if record.status == "done"]
        for row in rows
    ]  # fmt: skip
    return np.array([float(np.median(count)) for count in counts])


def _measured(material: Material, rows: Sequence[int], key: str, title: str) -> Axis:
    """FLOPs are one number; a time is a median between quartiles."""
    encoder = material.table.condition.encoder
    here = [one for one in material.profiles if one.conditions.encoder == encoder]
    profiles = alike(here, attrgetter(key))
    methods = [material.table.methods[row] for row in rows]
    found = [getattr(profiles.by_method.get(method), key, None) for method in methods]
    title = f"{title}\n({profiles.conditions})" if profiles.conditions else title
    median, low, high = (
        np.array([_end(one, end) for one in found]) for end in ("median", "q1", "q3")
    )
    return Axis(key=key, title=title, value=median, low=low, high=high)


def _end(value: object, end: str) -> float:
    """The median or a quartile; a number that was counted is its own median and has no spread."""
    found = getattr(value, end, value if end == "median" else None)
    return float(found) if isinstance(found, int | float) else float("nan")
