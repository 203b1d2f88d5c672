"""Images as another place, weather or camera gives them: what a network meets after it was trained.

Each corruption has a strength in (0, 1]. They serve to shift data in a controlled way; the kinds
are those of Hendrycks and Dietterich, 2019 (https://arxiv.org/abs/1903.12261), the numbers are
ours.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFilter

from qnas_jax.data.batching import Dataset

Rng = np.random.Generator


def _dark(image: np.ndarray, strength: float, rng: Rng) -> np.ndarray:
    """Less light: at 1 an eighth of it, with the noise of a sensor."""
    light = image * (1 - 0.875 * strength)
    return light + rng.normal(0, 6 * strength, image.shape)


def _fog(image: np.ndarray, strength: float, rng: Rng) -> np.ndarray:
    """A veil of light grey: at 1 it is four fifths of the image."""
    del rng
    return image + 0.8 * strength * (200.0 - image)


def _noise(image: np.ndarray, strength: float, rng: Rng) -> np.ndarray:
    """Normal noise: at 1 its standard deviation is 64 of 255."""
    return image + rng.normal(0, 64 * strength, image.shape)


def _blur(image: np.ndarray, strength: float, rng: Rng) -> np.ndarray:
    """A Gaussian blur: at 1 its standard deviation is a 24th of the height."""
    del rng
    radius = strength * image.shape[0] / 24
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


CORRUPTIONS: dict[str, Callable[[np.ndarray, float, Rng], np.ndarray]] = {
    "dark": _dark,
    "fog": _fog,
    "noise": _noise,
    "blur": _blur,
}


class Corrupted:
    """A data set whose images are corrupted when they are read; labels stay as they are."""

    def __init__(self, data: Dataset, corruptions: Sequence[tuple[str, float]]):
        """Applies corruptions in this order.

        Args:
          data: The images.
          corruptions: Names of `CORRUPTIONS` with their strengths in (0, 1].
        """
        self._data, self._corruptions = data, tuple(corruptions)
        self.names, self.labels_per = data.names, data.labels_per
        self.content, self.check = data.content, data.check

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, which is the same at every call, and its label."""
        image, label = self._data[index]
        rng = np.random.default_rng(range(len(self))[index])
        for name, strength in self._corruptions:
            found = CORRUPTIONS[name](image, strength, rng)
            image = np.clip(np.rint(found), 0, 255).astype(np.uint8)
        return image, label
