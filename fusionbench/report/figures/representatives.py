"""Who stands for a family where all methods at once would be a tangle.

Never chosen by score: the baseline and the methods of the planned contrasts, then of each family
left the one that its card declares, and where that did not run the first by name.
"""

from fusionbench.report.figures.material import Material

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
