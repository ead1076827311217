"""A `.npy` file that takes its rows in any order and from any thread.

Rows are written, not mapped: no page is faulted in to be overwritten at once, and a full disk is an
error that can be told, where a mapping would end the process.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


class RowFile:
    """A new file of one array; complete once every row has been written.

    Raises OSError where the system cannot make, fill or keep it.
    """

    def __init__(self, path: Path, *, dtype: str, shape: Sequence[int]) -> None:
        self._dtype = np.dtype(dtype)
        self._shape = tuple(shape[1:])
        self._row = int(np.prod(self._shape)) * self._dtype.itemsize
        self._file = path.open("wb", buffering=0)
        head = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": tuple(shape),
        }
        npy.write_array_header_1_0(self._file, head)
        self._rows_at = self._file.tell()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Rows from `start` on, in the file's type and shape; TypeError for any others."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._shape:
            raise TypeError(
                f"rows of {rows.dtype} {rows.shape[1:]}, but the file's are {self._dtype} "
                f"{self._shape}"
            )
        left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        at = self._rows_at + start * self._row
        while left:
            done = os.pwrite(self._file.fileno(), left, at)
            left, at = left[done:], at + done

    def finish(self) -> None:
        """Whole on the disk, and closed."""
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """As it is."""
        self._file.close()
