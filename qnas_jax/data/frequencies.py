"""Other frequencies of classes: what a network meets where other things are common."""

from collections.abc import Sequence

import numpy as np

from qnas_jax.data.batching import Dataset
from qnas_jax.errors import InputError
from qnas_jax.metrics import IGNORE


class Resampled:
    """A data set in which images of some classes are more or less frequent.

    `data` has all images, and `places` those that each image is.

    It has as many images as before, in the same order; frequent ones come several times, and rare
    ones may be gone. An image counts as much as its labels do, in the mean over its pixels.
    """

    def __init__(self, data: Dataset, frequencies: Sequence[tuple[str, float]]):
        """Reads all labels.

        Args:
          data: The images.
          frequencies: Names of classes with numbers: how many times as much a label of that class
            counts as those of the classes that are not named. Images whose labels count 0 are gone.

        Raises:
          InputError: There is no such class, or no image is left.
        """
        if not len(data):
            raise InputError("frequencies: there are no images")
        self.data = data
        self.names, self.labels_per = data.names, data.labels_per
        self.content, self.check = data.content, data.check
        by_class = np.ones(len(data.names))
        for name, weight in frequencies:
            if name not in data.names:
                known = ", ".join(data.names)
                raise InputError(f"frequencies: there is no class {name!r}; there are {known}")
            by_class[data.names.index(name)] = weight
        weights = np.array([_mean(by_class, data[index][1]) for index in range(len(data))])
        if not weights.any():
            raise InputError(f"frequencies: all {len(data)} images show only classes that count 0")
        # Alike images stand together, so that each class gets its number, whatever the order is.
        order = np.argsort(weights, kind="stable")
        sums = np.cumsum(weights[order])
        wanted = (np.arange(len(data)) + 0.5) / len(data) * sums[-1]
        self.places = np.sort(order[np.searchsorted(sums, wanted)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and its label."""
        return self.data[int(self.places[index])]


def _mean(by_class: np.ndarray, label: np.ndarray) -> float:
    """The mean weight of an image's labels; 1 where none counts."""
    counted = label[label != IGNORE] if label.ndim else label
    return float(by_class[counted].mean()) if counted.size else 1.0
