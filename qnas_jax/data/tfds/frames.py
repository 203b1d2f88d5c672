"""Records of TFRECORD files by their number, without TensorFlow.

A file is a sequence of frames: 8 bytes that give the length of the record, 4 bytes of checksum, the
record, and 4 bytes of checksum. It has no table of contents, so one is made from the lengths when
a file is first used.

References:
  https://www.tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details".
"""

import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from qnas_jax.errors import InputError

_LENGTH, _HEAD, _TAIL = 8, 12, 4  # bytes of a frame: the length, all before and after the record


class Frames:
    """The records of some files, numbered through; may be read by several threads."""

    def __init__(self, files: Sequence[pathlib.Path], counts: Sequence[int]):
        """Opens nothing yet.

        Args:
          files: The files in their order.
          counts: How many records each must hold.
        """
        self._files, self._counts = files, counts
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._starts: list[np.ndarray | None] = [None] * len(files)
        self._locks = [threading.Lock() for _ in files]

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> bytes:
        """A record.

        Raises:
          InputError: Its file is cut or damaged; the message names it.
        """
        place = int(np.searchsorted(self._firsts, index, "right")) - 1
        number = index - int(self._firsts[place])
        begin, end = self.index(place)[number : number + 2].tolist()
        with self._files[place].open("rb") as file:
            file.seek(begin + _HEAD)
            return file.read(end - begin - _HEAD - _TAIL)

    def index(self, place: int) -> np.ndarray:
        """Where each record's frame begins in a file, and where the last one ends, bytes."""
        with self._locks[place]:
            starts = self._starts[place]
            if starts is None:
                starts = self._starts[place] = _starts(self._files[place], self._counts[place])
        return starts


def _starts(path: pathlib.Path, count: int) -> np.ndarray:
    """Walks over the frames; reads their lengths alone."""
    starts = np.zeros(count + 1, np.int64)
    with path.open("rb", buffering=0) as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        for number in range(count):
            length = os.pread(file.fileno(), _LENGTH, at)
            at += _HEAD + int.from_bytes(length, "little") + _TAIL
            if len(length) < _LENGTH or at > end:
                raise InputError(
                    f"{path}: ends within record {number} of {count}, so it was cut or is "
                    "damaged; copy or prepare it again"
                )
            starts[number + 1] = at
    if at != end:
        raise InputError(
            f"{path}: holds more than its {count} records, so it is of another version of the data "
            "set or damaged; prepare it again"
        )
    return starts
