"""Where images come from: the reader of each value of `data.source`.

A module here and not in `data/`, whose modules are given values and know no config.
"""

from qnas_jax.data.batching import Cached, Dataset
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.corruptions import Corrupted
from qnas_jax.data.digits import Digits
from qnas_jax.data.folders import Folders
from qnas_jax.data.frequencies import Resampled
from qnas_jax.data.streets import Objects, Streets
from qnas_jax.run import config


def opened(data: config.Data, split: str) -> Dataset:
    """Opens a split of the images.

    Args:
      data: The settings, checked.
      split: "train" or "val".

    Raises:
      InputError: The images are not where the settings say, or a named class is not among theirs.
    """
    images = _reader(data, split)
    shifted = Corrupted(images, data.corruptions) if data.corruptions else images
    cached = Cached(shifted, data.cache_mb)
    return Resampled(cached, data.frequencies) if data.frequencies else cached


def _reader(data: config.Data, split: str) -> Dataset:
    size = data.height, data.width
    count = {"train": data.train_images, "val": data.val_images}[split]
    if data.source == "streets":
        return Streets(data.seed, split, *size, count)
    if data.source == "cityscapes":
        return Cityscapes(data.root, split, *size, count)
    if data.source == "objects":
        return Objects(data.seed, split, *size, count)
    if data.source == "digits":
        return Digits(split, *size, count)
    if data.source == "folder":
        return Folders(data.root, split, *size, count)
    if data.source == "tfds":
        from qnas_jax.data.tfds import Tfds  # its packages are many

        return Tfds(data.root, data.name, split, *size, count)
    raise AssertionError(data.source)
