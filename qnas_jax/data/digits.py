"""Handwritten digits that come with scikit-learn: 1,797 real images of 8 x 8, enlarged.

References:
  E. Alpaydin, C. Kaynak, 1998, https://archive.ics.uci.edu/dataset/80 (its test set).
"""

import hashlib

import numpy as np
from PIL import Image

from qnas_jax.errors import InputError

VAL_PER_CLASS = 36  # of 174 to 183: 360 in all, which leaves 1,437 to train on
_MOST = 16  # largest value of a pixel


class Digits:
    """The digits of one split, in a fixed random order."""

    names = tuple("0123456789")
    labels_per = "image"

    def __init__(self, split: str, height: int, width: int, count: int = 0):
        """Loads the digits.

        Args:
          split: "train" or "val".
          height: Height of the enlarged images in pixels.
          width: Their width.
          count: How many to take; 0 takes all.

        Raises:
          InputError: scikit-learn is not installed, or there are too few digits.
        """
        images, classes = _loaded()
        rng = np.random.default_rng(0)
        places = [rng.permutation(np.flatnonzero(classes == c)) for c in range(len(self.names))]
        part = slice(None, VAL_PER_CLASS) if split == "val" else slice(VAL_PER_CLASS, None)
        chosen = rng.permutation(np.concatenate([of_class[part] for of_class in places]))
        if count > len(chosen):
            raise InputError(f"data.{split}_images={count}: there are {len(chosen)} digits")
        chosen = chosen[: count or None]
        self._size = (width, height)
        self._images = np.round(images[chosen] * (255 / _MOST)).astype(np.uint8)
        self._labels = classes[chosen].astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8[height, width, 3], bilinear, its channels alike; and its digit int32[]."""
        grey = Image.fromarray(self._images[index])
        image = grey.resize(self._size, Image.Resampling.BILINEAR).convert("RGB")
        return np.asarray(image), np.array(self._labels[index])

    def content(self) -> str:
        """A short hash of the digits of the split."""
        held = self._images.tobytes() + self._labels.tobytes()
        return hashlib.sha256(held).hexdigest()[:12]

    def check(self) -> None:
        """Does nothing: all digits have been read."""


def _loaded() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits  # an extra; takes seconds
    except ImportError:
        raise InputError(
            "data.source='digits': needs scikit-learn; pip install 'qnas-jax[digits]'"
        ) from None
    pixels, classes = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8), classes
