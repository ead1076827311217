"""What stands below the scores: methods and versions, environment, and how to run it again."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Run
from fusionbench.report.tables import Row


def method_rows(records: Sequence[CellRecord]) -> list[Row]:
    """Each method with its version and settings, once for each combination that ran."""
    found = {
        (record.label or record.spec.method, record.spec.method_version, _settings(record)): {
            "method": record.label or record.spec.method,
            "version": str(record.spec.method_version),
            "where": "in the encoder" if record.in_encoder else "on cached features",
            "settings": _settings(record),
            "from": str(record.provenance.get("method", "")),
        }
        for record in sorted(records, key=attrgetter("in_encoder"))
    }
    return [row for _, row in sorted(found.items())]


def _settings(record: CellRecord) -> str:
    settings = sorted(record.spec.settings.items())
    return ", ".join(f"{name}={value}" for name, value in settings) or "none"


def task_rows(records: Sequence[CellRecord]) -> list[Row]:
    """Each task with its version, data and size."""
    found = {
        (record.spec.task, record.spec.task_version, record.spec.data): {
            "task": record.spec.task,
            "version": str(record.spec.task_version),
            "group": record.group,
            "in the suite": "yes" if record.in_suite else "no",
            "metric": record.metric,
            "chance": f"{record.chance:.6f}",
            "test examples": str(record.examples),
            "data": record.spec.data[:12],
        }
        for record in sorted(records, key=lambda record: record.status == "done")
    }
    return [row for _, row in sorted(found.items())]


def environment_rows(records: Iterable[CellRecord]) -> list[Row]:
    """What the records were made with, and how many of them by each."""
    found: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        spec = record.spec
        found["encoder", spec.encoder, f"weights {spec.weights[:12]}"] += 1
        if record.status == "done":
            found.update(_origins(record.provenance))
    return [
        {"part": part, "name": name, "value": value, "cells": str(count)}
        for (part, name, value), count in sorted(found.items())
    ]


def _origins(provenance: Mapping[str, object]) -> Iterable[tuple[str, str, str]]:
    for part in ("code", "software", "hardware"):
        facts = provenance.get(part)
        for name, value in sorted(facts.items()) if isinstance(facts, Mapping) else ():
            if value not in ("", None):
                yield part, str(name), str(value)


def study_yaml(planned: Run | None) -> str:
    """The last study as a file that `fusionbench run` takes; empty without one."""
    if planned is None:
        return ""
    import yaml

    # Every key, empty ones too: what is left out would come from the quick preset.
    return yaml.safe_dump(dict(planned.study), sort_keys=True, allow_unicode=True)


def commands(records: Sequence[CellRecord], planned: Run | None) -> str:
    """From an empty machine to these tables, as far as the records know."""
    commits = sorted({str(r.provenance.get("code", {}).get("commit", "")) for r in records} - {""})
    versions = sorted({str(r.provenance.get("code", {}).get("fusionbench", "")) for r in records})
    version = planned.version if planned and planned.version else (versions or [""])[-1]
    lines = ["# in a checkout of FusionBench"]
    lines += [f"git checkout {commits[-1]}"] if commits else [f"git checkout v{version}"]
    lines += [
        "pip install -e '.[data]'",
        "fusionbench run study.yaml --out results/again    # the file below",
        "fusionbench report results/again",
    ]
    return "\n".join(lines)
