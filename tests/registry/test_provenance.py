"""What a record says of the code that made it."""

import subprocess
from pathlib import Path

import pytest

import fusionbench
from fusionbench.registry import provenance

ROOT = Path(fusionbench.__file__).parent.parent


@pytest.fixture(autouse=True)
def fresh():
    provenance.code_state.cache_clear()
    yield
    provenance.code_state.cache_clear()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_checkout_names_its_commit_and_whether_it_is_clean():
    state = provenance.code_state()
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert state["commit"] == head.stdout.strip() != ""
    assert isinstance(state["dirty"], bool)


def test_a_wheel_has_a_version_and_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance.fusionbench, "__file__", str(tmp_path / "fusionbench/x.py"))
    assert provenance.code_state() == {"fusionbench": fusionbench.__version__, "commit": ""}
