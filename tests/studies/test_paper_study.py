"""The paper study: declared before it was run, and its report comes from its records."""

from pathlib import Path

import pytest

from fusionbench.records.history import History
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.report.build import write_report
from fusionbench.report.claims import PUBLISHED, checked, load_claims
from fusionbench.study.study import load_study

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = ROOT / "studies" / "paper.yaml"
RESULTS = ROOT / "results" / "paper"
pytestmark = pytest.mark.skipif(not STUDY.exists(), reason="an installed wheel has no studies")
recorded = pytest.mark.skipif(not RESULTS.exists(), reason="the study has no records yet")


def test_the_study_asks_for_ten_seeds_and_at_most_twelve_comparisons():
    study = load_study(STUDY)
    assert (study.encoder, study.seeds, study.methods) == ("dinov2-small", 10, ("all",))
    assert len(study.contrasts) == 12
    catalog = read_catalog()
    for contrast in study.contrasts:
        names = [contrast["method"], contrast.get("baseline"), contrast.get("control")]
        select_methods(catalog, [name for name in names if name])


def test_every_claim_names_methods_and_tasks_that_exist():
    claims = load_claims(ROOT / "docs" / "claims.yaml")
    catalog = read_catalog()
    assert len(claims) >= 12 and not {one.id for one in claims} & {
        one.id for one in load_claims(PUBLISHED)
    }
    for claim in claims:
        checked(claim, catalog, ())
        assert claim.source and claim.evidence


@recorded
def test_the_records_were_asked_for_with_the_declared_contrasts_and_margins():
    declared = load_study(STUDY)
    for request in History(RESULTS / "study.json").requests():
        asked = request.study
        assert [dict(one) for one in asked["contrasts"]] == [dict(c) for c in declared.contrasts]
        assert dict(asked["margins"]) == dict(declared.margins)
        assert asked["baseline"] == declared.baseline and asked["encoder"] == declared.encoder


@recorded
def test_the_shipped_tables_come_from_the_shipped_records(tmp_path):
    write_report(RESULTS, tmp_path)
    shipped = {path.name: path for path in (RESULTS / "report" / "tables").iterdir()}
    again = {path.name: path for path in (tmp_path / "tables").iterdir()}
    assert shipped.keys() == again.keys() and "contrasts.csv" in shipped
    for name, path in again.items():
        assert path.read_bytes() == shipped[name].read_bytes(), name
