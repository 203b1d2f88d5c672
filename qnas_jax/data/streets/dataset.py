"""The Streets data set."""

import threading

import numpy as np

from qnas_jax.data.labels import NAMES
from qnas_jax.data.streets.scene import render


class Streets:
    """Street scenes, rendered on first access and then cached in memory.

    A scene takes ``4 * height * width`` bytes. Write large sets to disk once
    (`qnas write_streets`) and read them as Cityscapes.
    """

    names = NAMES
    labels_per = "pixel"

    def __init__(self, seed: int, split: str, height: int, width: int, count: int):
        """Creates a split of `count` scenes; `seed` identifies the data set."""
        self._scene = (seed, split)
        self._size = (height, width)
        self._kept: list[tuple[np.ndarray, np.ndarray] | None] = [None] * count
        self._locks = [threading.Lock() for _ in range(count)]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8[height, width, 3], and train ids, uint8[height, width]."""
        with self._locks[index]:
            kept = self._kept[index]
            if kept is None:
                kept = self._kept[index] = render(*self._scene, index, *self._size)
        return kept

    def content(self) -> str:
        """Nothing: the settings determine the scenes."""
        return ""

    def check(self) -> None:
        """Does nothing: there are no files."""
