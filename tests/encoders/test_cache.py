"""Files that appear whole, and hashes that are computed once."""

import os
from pathlib import Path

import pytest

from fusionbench.records.files import cache_dir, file_hash, sha256_of, write_atomic


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))


class Counting:
    """A hash that counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> str:
        self.calls += 1
        return sha256_of(path)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir("a", "b") == tmp_path / "cache" / "a" / "b"
    assert not (tmp_path / "cache" / "a").exists()
    monkeypatch.delenv("FUSIONBENCH_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "fusionbench"


def test_a_file_is_hashed_once_until_its_size_or_time_changes(tmp_path):
    file, count = tmp_path / "weights", Counting()
    file.write_bytes(b"one")
    first = file_hash(file, compute=count)
    assert file_hash(file, compute=count) == first == sha256_of(file) and count.calls == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert file_hash(file, compute=count) == sha256_of(file) != first and count.calls == 2
    file.write_bytes(b"three")
    os.utime(file, ns=(1, 1))
    assert file_hash(file, compute=count) == sha256_of(file) and count.calls == 3


@pytest.mark.fault("stored data", "weights replaced, size and time kept", "hashed again")
def test_other_contents_with_size_and_time_kept_are_hashed_anew(tmp_path):
    file, count = tmp_path / "weights", Counting()
    file.write_bytes(b"one")
    first, before = file_hash(file, compute=count), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hash(file, compute=count) == sha256_of(file) != first
    other = tmp_path / "copy"
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert file_hash(file, compute=count) == sha256_of(file) and count.calls == 3


@pytest.mark.fault("stored data", "a damaged note of a hash", "hashed again")
@pytest.mark.parametrize("text", ["", "0" * 64, "deadbeef", "\0" * 90, "[" * 5000])
def test_a_note_that_is_not_what_was_written_is_no_hash(text, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    file_hash(file)
    (note,) = cache_dir("hashes").iterdir()
    note.write_text(text)
    assert file_hash(file) == sha256_of(file)


def test_files_are_made_with_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "mine", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600


def test_two_kinds_of_hash_of_one_file_are_kept_apart(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    assert file_hash(file, compute=lambda _: "length 3", kind="length") == "length 3"
    assert file_hash(file) == sha256_of(file)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(file / "inside a file"))
    assert file_hash(file) == sha256_of(file)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    write_atomic(target, b"old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]
