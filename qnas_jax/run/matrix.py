"""Matrices on disk that may exceed the memory, read and written by rows.

They are `.npy` files, but not mapped into memory: with a map, a full disk or an error of the
system ends the process without a message, and some file systems cannot map files.
"""

import os
import pathlib

import numpy as np
from numpy.typing import ArrayLike

from qnas_jax.run import disk
from qnas_jax.run.stage import DAMAGE, unreadable


class Matrix:
    """A float32 matrix in a file; rows are taken and set by their numbers."""

    def __init__(self, file: pathlib.Path, offset: int, width: int):
        """See `create` and `load`."""
        self._file, self._offset, self._width = file, offset, width

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self._width), np.float32)
        with disk.naming(self._file), self._file.open("rb", buffering=0) as file:
            for row, place in zip(found, self._places(rows), strict=True):
                file.seek(place)
                if file.readinto(row.data) != row.nbytes:
                    raise unreadable(self._file.parent, EOFError(f"ends at {place}"))
        return found

    def __setitem__(self, rows: np.ndarray, values: ArrayLike) -> None:
        with disk.naming(self._file), self._file.open("r+b") as file:
            for row, place in zip(np.asarray(values), self._places(rows), strict=True):
                file.seek(place)
                file.write(row.data)

    def _places(self, rows: np.ndarray) -> list[int]:
        """Where rows begin in the file."""
        return (self._offset + rows * self._width * np.float32().itemsize).tolist()


def create(file: pathlib.Path, shape: tuple[int, int]) -> Matrix:
    """A new matrix; all of its rows must be set."""
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    with disk.naming(file), file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        return Matrix(file, out.tell(), shape[1])


def load(file: pathlib.Path) -> Matrix:
    """A matrix that was written.

    Raises:
      InputError: It is missing or damaged, or cannot be read.
    """
    try:
        with file.open("rb") as content:
            np.lib.format.read_magic(content)
            (rows, width), _, dtype = np.lib.format.read_array_header_1_0(content)
            offset = content.tell()
            size = os.fstat(content.fileno()).st_size
        if dtype != np.float32 or size != offset + rows * width * dtype.itemsize:
            raise ValueError(f"{size} bytes of {dtype} are not {rows} rows of {width}")
    except (OSError, *DAMAGE) as error:
        found = disk.fault(error)
        if found:
            raise disk.refusal(file, found) from None
        raise unreadable(file.parent, error) from None
    return Matrix(file, offset, width)
