"""Files that appear whole, and hashes that are computed once."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fusionbench.models.encoders.features import RowFile
from fusionbench.records.files import cache_dir, file_hash, is_sealed, sha256_of, write_atomic


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))


class Counting:
    """A hash that counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> str:
        self.calls += 1
        return sha256_of(path)


@pytest.mark.usefixtures("own_cache")
def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir("a", "b") == tmp_path / "cache" / "a" / "b"
    assert not (tmp_path / "cache" / "a").exists()
    monkeypatch.delenv("FUSIONBENCH_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "fusionbench"


@pytest.mark.usefixtures("own_cache")
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


@pytest.mark.usefixtures("own_cache")
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


@pytest.mark.usefixtures("own_cache")
@pytest.mark.fault("stored data", "a damaged note of a hash", "hashed again")
@pytest.mark.parametrize("text", ["", "0" * 64, "deadbeef", "\0" * 90, "[" * 5000])
def test_a_note_that_is_not_what_was_written_is_no_hash(text, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    file_hash(file)
    (note,) = cache_dir("hashes").iterdir()
    note.write_text(text)
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
def test_files_are_made_with_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "mine", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("own_cache")
def test_two_kinds_of_hash_of_one_file_are_kept_apart(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    assert file_hash(file, compute=lambda _: "length 3", kind="length") == "length 3"
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(file / "inside a file"))
    assert file_hash(file) == sha256_of(file)


@pytest.mark.usefixtures("own_cache")
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


# Files of rows: what NumPy reads is what was written, in whatever order.

ROWS = np.random.default_rng(0).normal(size=(40, 3, 5))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_any_order_and_thread_are_the_array(dtype, tmp_path):
    rows = ROWS.astype(dtype)
    file = RowFile(tmp_path / "rows.npy", dtype=dtype, shape=rows.shape)
    with ThreadPoolExecutor(4) as threads:
        starts = np.random.default_rng(1).permutation(range(0, 40, 7))
        list(threads.map(lambda start: file.write(start, rows[start : start + 7]), starts))
    file.finish()
    assert (np.load(tmp_path / "rows.npy", mmap_mode="r") == rows).all()


def test_the_bytes_are_those_that_numpy_saves(tmp_path):
    rows = ROWS.astype(np.float16)
    file = RowFile(tmp_path / "rows.npy", dtype="float16", shape=rows.shape)
    file.write(0, rows)
    file.finish()
    np.save(tmp_path / "numpy.npy", rows)
    written, wanted = ((tmp_path / f"{name}.npy").read_bytes() for name in ("rows", "numpy"))
    assert written.startswith(wanted) and written[len(wanted) :].startswith(b"\n#sha256 ")
    assert is_sealed(tmp_path / "rows.npy")


def test_a_view_is_written_as_it_reads(tmp_path):
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=(40, 5, 3))
    file.write(0, ROWS.transpose(0, 2, 1))
    file.finish()
    assert (np.load(tmp_path / "rows.npy") == ROWS.transpose(0, 2, 1)).all()


@pytest.mark.parametrize("rows", [ROWS.astype(np.float32), ROWS[:, :2]])
def test_rows_of_another_kind_are_refused(rows, tmp_path):
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=ROWS.shape)
    with pytest.raises(TypeError, match="but the file's are float64"):
        file.write(0, rows)
    file.close()


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path, monkeypatch):
    put = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: put(fd, data[:100], at))
    file = RowFile(tmp_path / "rows.npy", dtype="float64", shape=ROWS.shape)
    file.write(0, ROWS)
    file.finish()
    assert (np.load(tmp_path / "rows.npy") == ROWS).all()


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    from toy_cells import PixelToyEncoder

    from fusionbench.models.encoders import features
    from fusionbench.models.encoders.features import FeatureKey

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    key = FeatureKey(weights="w", size=8, images="i", count=4, precision="fp32", dtype="float32")
    with pytest.raises(OSError, match="No space left"):
        features.encode(PixelToyEncoder(), images, key, [(1,)], limit_gib=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
