"""Files of rows: what NumPy reads is what was written, in whatever order."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fusionbench.models.encoders.features import RowFile
from fusionbench.records.files import is_sealed

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
