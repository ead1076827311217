"""Names of rows and columns: plain where they are unique, else marked with what differs."""

from collections.abc import Callable, Hashable, Sequence
from hashlib import sha256

from fusionbench.records import CellRecord, canonical


def method_mark(record: CellRecord, version_tells: bool) -> str:
    """What tells two methods of one label apart: the version, or the settings as well."""
    settings = sha256(canonical(dict(record.spec.settings)).encode()).hexdigest()[:6]
    version = f"version {record.spec.method_version}"
    return version if version_tells else f"{version}, settings {settings}"


def task_mark(record: CellRecord, version_tells: bool) -> str:
    """What tells two tasks of one name apart: the version, or the data as well."""
    version = f"version {record.spec.task_version}"
    return version if version_tells else f"{version}, data {record.spec.data[:6]}"


def unique_names(
    records: Sequence[CellRecord],
    keys: Sequence[Hashable],
    name: Callable[[CellRecord], str],
    mark: Callable[[CellRecord, bool], str],
) -> dict[Hashable, str]:
    """A unique name per key: the plain one, or with its version, or with what else differs."""
    by_name: dict[str, dict[Hashable, CellRecord]] = {}
    for record, key in zip(records, keys, strict=True):
        by_name.setdefault(name(record), {})[key] = record
    found: dict[Hashable, str] = {}
    for plain, variants in by_name.items():
        versions = {mark(record, True) for record in variants.values()}
        for one, record in variants.items():
            marked = f"{plain} ({mark(record, len(versions) == len(variants))})"
            found[one] = plain if len(variants) == 1 else marked
    return found
