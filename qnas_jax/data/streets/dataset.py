"""The data sets that are rendered: whole streets, and single things of them."""

import numpy as np

from qnas_jax.data import labels
from qnas_jax.data.streets import scene, things


class _Rendered:
    """Images that their settings determine. Nothing is kept; see `batching.Cached`."""

    def __init__(self, seed: int, split: str, height: int, width: int, count: int):
        """Creates a split of `count` images; `seed` identifies the data set."""
        self._seed, self._split, self._size = seed, split, (height, width)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def _settings(self, index: int) -> tuple[int, str, int, int, int]:
        return self._seed, self._split, range(self._count)[index], *self._size

    def content(self) -> str:
        """Nothing: the settings determine the images."""
        return ""

    def check(self) -> None:
        """Does nothing: there are no files."""


class Streets(_Rendered):
    """Street scenes. Write large sets to disk once (`qnas write_streets`); see `cityscapes`."""

    names = labels.NAMES
    labels_per = "pixel"

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8[height, width, 3], and train ids, uint8[height, width]."""
        return scene.render(*self._settings(index))


class Objects(_Rendered):
    """Single things of the streets, partly hidden, in any light: a class for each image."""

    names = things.NAMES
    labels_per = "image"

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8[height, width, 3], and its class, int32[]."""
        image, kind, _ = things.render(*self._settings(index))
        return image, np.array(kind, np.int32)
