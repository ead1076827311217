"""All that figures are drawn from: the scores of one condition, and what lies beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool

from fusionbench.records.cost import CostRecord
from fusionbench.records.pairs import Results
from fusionbench.records.probes import ProbeMap
from fusionbench.records.scores import ScoreTable
from fusionbench.report.tables import Row, names


@dataclass(frozen=True, kw_only=True)
class Material:
    """One condition: its table and what was found for its encoder."""

    table: ScoreTable
    results: Results
    baseline: str = ""
    contrasts: Sequence[Row] = ()
    planned: Sequence[str] = ()
    """Methods of the planned contrasts."""
    margins: tuple[float, float] = (1.0, 2.0)
    """Differences that do not matter, in points: of the suite, of a task."""
    profiles: Sequence[CostRecord] = ()
    """Of the condition's encoder."""
    probes: Sequence[ProbeMap] = ()
    """Of the condition's weights."""
    labels: Sequence[str] = field(init=False)
    """Methods as a reader should see them, in the order of the table."""
    in_encoder: Sequence[bool] = field(init=False)
    """Whether the encoder ran in every step of a method."""

    def __post_init__(self) -> None:
        """What several figures ask for is found once."""
        table = self.table
        inside = [
            any(run.in_encoder for run in table.row(row)) for row in range(len(table.methods))
        ]
        object.__setattr__(self, "labels", tuple(names(table)))
        object.__setattr__(self, "in_encoder", tuple(inside))

    def of(self, keep: Bool[np.ndarray, " task"]) -> "Material":
        """The same for some of the tasks."""
        return replace(self, table=self.table.pick(keep))

    def row(self, method: str) -> int | None:
        """The place of a method in the table."""
        return self.table.methods.index(method) if method in self.table.methods else None


# Who stands for a family where all methods at once would be a tangle.
#
# Never chosen by score: the baseline and the methods of the planned contrasts, then of each family
# left the one that its card declares, and where that did not run the first by name.


MOST = 10


def representatives(material: Material, *, complete: bool = False) -> list[int]:
    """Rows of at most `MOST` methods, one per family, in the order of the table.

    `complete` takes only those that ran on every task of the table with every seed.
    """
    methods = material.table.methods
    allowed = [row for row in range(len(methods)) if not complete or _ran(material, row)]
    chosen: dict[str, int] = {}
    for row in sorted(allowed, key=lambda row: (_order(material, row), methods[row])):
        chosen.setdefault(family(material, row), row)
    return sorted(list(chosen.values())[:MOST])


def family(material: Material, row: int) -> str:
    """`mema` of `mema-no_query[reduction=2]`: what the records say, else the name's first part."""
    first = material.table.row(row)[0]
    return first.family or first.spec.method.partition("-")[0]


def _order(material: Material, row: int) -> int:
    method = material.table.methods[row]
    if method == material.baseline:
        return 0
    if method in material.planned:
        return 1
    return 2 if material.table.row(row)[0].representative else 3


def _ran(material: Material, row: int) -> bool:
    table = material.table
    done = sum(record.status == "done" for record in table.row(row))
    # What saw the answers in training ranks with nobody.
    return row not in table.leaky and done == len(table.tasks) * len(table.seeds)
