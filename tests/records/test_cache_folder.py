"""The cache folder: its owner's alone unless shared on purpose; named where it is of no use."""

import os
from pathlib import Path

import pytest

from fusionbench.api.errors import UserError
from fusionbench.records import files
from fusionbench.records.files import cache_dir, require_cache


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_cache_is_its_owners_alone(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_dir("weights", "a") == tmp_path / "deep" / "cache" / "weights" / "a"
    assert (tmp_path / "deep" / "cache").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "deep" / "cache" / "weights").exists()


def test_a_cache_that_is_shared_on_purpose_keeps_its_mode(tmp_path, monkeypatch, umask):
    tmp_path.chmod(0o2775)
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    cache_dir("features")
    assert tmp_path.stat().st_mode & 0o7777 == 0o2775


@pytest.mark.fault(
    "real files and terminals",
    "no home folder, a cache that cannot be written",
    "one line that names FUSIONBENCH_CACHE",
)
def test_without_a_home_folder_the_variable_is_enough_and_is_named(tmp_path, monkeypatch, call):
    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    assert call("list", "encoders")[0] == 0
    monkeypatch.delenv("FUSIONBENCH_CACHE")
    code, out, said = call("list", "encoders")
    assert (code, out) == (2, "") and said.splitlines() == [
        "error: there is no home folder for the cache",
        "hint: set FUSIONBENCH_CACHE to a folder that can be written",
    ]


@pytest.mark.fault(
    "real files and terminals",
    "no home folder, a cache that cannot be written",
    "one line that names FUSIONBENCH_CACHE",
)
def test_a_cache_that_cannot_be_made_ends_a_run_before_it_starts(tmp_path, monkeypatch, call):
    monkeypatch.setenv("FUSIONBENCH_CACHE", "/proc/nowhere")
    job = ("run", "--tasks", "digits", "--methods", "last", "--preset", "smoke")
    code, out, said = call(*job, "--out", tmp_path / "out")
    assert (code, out) == (2, "") and said.splitlines() == [
        "error: the cache folder /proc/nowhere cannot be made",
        "hint: set FUSIONBENCH_CACHE to a folder that can be written",
    ]
    assert not (tmp_path / "out").exists()
    # Looking needs no cache.
    assert call("list", "encoders")[0] == 0


@pytest.mark.fault(
    "real files and terminals",
    "no home folder, a cache that cannot be written",
    "one line that names FUSIONBENCH_CACHE",
)
def test_a_read_only_cache_is_refused_only_while_it_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to write to the cache folder"):
        require_cache()
    (tmp_path / "features").mkdir()
    require_cache()
