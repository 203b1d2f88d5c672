"""Cityscapes' folder layout: one reader for the real data set and for written Streets.

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png      the image, RGB
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png       its label ids, 8-bit grey
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png  or, without those, its train ids

References:
  Cordts et al., 2016, https://arxiv.org/abs/1604.01685; cityscapes-dataset.com.
"""

import logging
import pathlib

import numpy as np
from PIL import Image

from qnas_jax.data import files, labels
from qnas_jax.data.batching import prefetch
from qnas_jax.errors import InputError
from qnas_jax.metrics import IGNORE
from qnas_jax.run import artefacts
from qnas_jax.run.listing import listed

logger = logging.getLogger(__name__)

_IMAGE = "_leftImg8bit.png"
_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
_IMAGE_MODES, _LABEL_MODES = ("RGB",), ("L", "P")
_SAME_SHAPE = 0.01  # relative difference of width / height that rounding may make


class Cityscapes:
    """The images of one split with their train ids, read when asked for.

    Attributes:
      images: The image files, in order of their names.
      label_files: The file of each image's labels. All hold label ids, or all train ids.
    """

    names = labels.NAMES
    labels_per = "pixel"

    def __init__(self, root: str, split: str, height: int, width: int, count: int = 0):
        """Lists the files and checks that each image has its labels.

        Args:
          root: The folder that holds `leftImg8bit` and `gtFine`.
          split: "train" or "val".
          height: Images are resized to this height where they have another.
          width: Likewise.
          count: How many images to take, the first by name; 0 takes all.

        Raises:
          InputError: A folder or a file is missing, or there are too few images.
        """
        self._size = (width, height)
        self._labels = pathlib.Path(root) / "gtFine" / split
        folder = pathlib.Path(root) / "leftImg8bit" / split
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; data.root must hold leftImg8bit/{split} "
                f"and gtFine/{split} as Cityscapes' archives unpack"
            )
        self.images = listed(folder, "*/*" + _IMAGE)
        if not self.images:
            raise InputError(f"{folder}: holds no CITY/*{_IMAGE}")
        if count > len(self.images):
            raise InputError(f"data.{split}_images={count}: {folder} holds {len(self.images)}")
        self.images = self.images[: count or None]
        self._kind = self._kind_of_labels()
        self.label_files = [self._label_file(image, self._kind) for image in self.images]
        for image, label_file in zip(self.images, self.label_files, strict=True):
            if not label_file.is_file():
                raise InputError(f"{label_file}: missing, the labels of {image.name}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8[height, width, 3] and train ids uint8[height, width].

        Raises:
          InputError: A file is damaged, or holds what it must not; the message names it.
        """
        image = files.opened(self.images[index], _IMAGE_MODES)
        label = files.opened(self.label_files[index], _LABEL_MODES)
        self._check_sizes(index, image.size, label.size)
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        return np.asarray(image), self._train_ids(index, label)

    def content(self) -> str:
        """A short hash of what the files hold; see `files.fingerprint`."""
        names = [f"{image.parent.name}/{image.name}" for image in self.images]
        return files.fingerprint(names, list(zip(self.images, self.label_files, strict=True)))

    def check(self) -> None:
        """Looks at the files before work that takes hours: at all headers, and into some files.

        Raises:
          InputError: One of them cannot be used, images have different shapes, or no pixel of
            the split has a class.
        """
        sizes = files.look_at(self._header, len(self), f"{self._labels}: headers")
        self._check_shapes(sizes)
        sample = files.sample(len(self))
        found = files.look_at(
            lambda i: _has_class(self[sample[i]][1]), len(sample), f"{self._labels}: whole images"
        )
        self._check_kind(sample)
        if not (any(found) or any(prefetch(self._counts, 0, len(self)))):
            ids = ", ".join(str(label_id) for _, label_id, _ in labels.CLASSES)
            wanted = f"label ids of classes ({ids})"
            if self._kind == _TRAIN_IDS:
                wanted = f"train ids of classes (0..{len(labels.CLASSES) - 1})"
            raise InputError(
                f"{self._labels}: all labels of {len(self)} images are ignored; "
                f"some pixels must have the {wanted}"
            )

    def _counts(self, index: int) -> bool:
        """Whether a pixel of a label file has a class."""
        label = files.opened(self.label_files[index], _LABEL_MODES)
        return _has_class(self._train_ids(index, label))

    def _header(self, index: int) -> tuple[int, int]:
        size = files.header(self.images[index], _IMAGE_MODES)
        self._check_sizes(index, size, files.header(self.label_files[index], _LABEL_MODES))
        return size

    def _check_sizes(self, index: int, image: tuple[int, int], label: tuple[int, int]) -> None:
        if image != label:
            raise InputError(
                f"{self.label_files[index]}: is {label[0]} x {label[1]} pixels, "
                f"its image {image[0]} x {image[1]}"
            )

    def _check_shapes(self, sizes: list[tuple[int, int]]) -> None:
        """All images are resized to one size, so they must have one shape."""
        (width, height), first = sizes[0], self.images[0].name
        for file, size in zip(self.images, sizes, strict=True):
            if abs(size[0] * height / (size[1] * width) - 1) > _SAME_SHAPE:
                raise InputError(
                    f"{file}: is {size[0]} x {size[1]} pixels, {first} {width} x {height}; all "
                    "images of a split are resized to one size, so crop them to one shape"
                )

    def _check_kind(self, sample: list[int]) -> None:
        """Refuses train ids in files that are named as those of label ids."""
        if self._kind == _TRAIN_IDS:
            return
        counts = np.zeros(256, np.int64)
        for index in sample:
            values = np.asarray(files.opened(self.label_files[index], _LABEL_MODES))
            counts += np.bincount(values.ravel(), minlength=256)
        ignored = labels.train_ids(np.arange(labels.LABEL_IDS, dtype=np.uint8)) == IGNORE
        share = counts[: labels.LABEL_IDS][ignored].sum() / counts.sum()
        none_above = not counts[len(labels.CLASSES) :].any()
        if none_above and 0.5 < share < 1:
            raise InputError(
                f"{self.label_files[sample[0]]}: as label ids, {100 * share:.0f} % of the pixels "
                f"of {len(sample)} files are ignored, and no value is above 18, as in train ids; "
                f"the names of files with train ids must end in {_TRAIN_IDS}"
            )

    def _train_ids(self, index: int, label: Image.Image) -> np.ndarray:
        if label.size != self._size:
            label = label.resize(self._size, Image.Resampling.NEAREST)
        values = np.asarray(label)
        try:
            if self._kind == _TRAIN_IDS:
                return labels.checked_train_ids(values)
            return labels.train_ids(values)
        except ValueError as error:
            raise InputError(f"{self.label_files[index]}: {error}") from None

    def _kind_of_labels(self) -> str:
        """The ending of the label files: that of label ids where the first image has them."""
        kinds = [
            k for k in (_LABEL_IDS, _TRAIN_IDS) if self._label_file(self.images[0], k).is_file()
        ]
        kind = kinds[0] if kinds else _LABEL_IDS
        if kind == _TRAIN_IDS:
            logger.info("%s: labels are train ids, from *%s", self._labels, kind)
        return kind

    def _label_file(self, image: pathlib.Path, kind: str) -> pathlib.Path:
        return self._labels / image.parent.name / (image.name.removesuffix(_IMAGE) + kind)


def _has_class(train_ids: np.ndarray) -> bool:
    return bool((train_ids != IGNORE).any())


def exists(root: str, split: str, name: str) -> bool:
    """Whether an image and its labels have been written; see `write`."""
    return all(file.exists() for file in _files(root, split, name))


def write(root: str, split: str, name: str, image: np.ndarray, train_ids: np.ndarray) -> None:
    """Writes one image and its labels into Cityscapes' layout.

    Args:
      root: The folder that holds, or will hold, `leftImg8bit` and `gtFine`.
      split: "train" or "val".
      name: `city_xxxxxx_yyyyyy`; the city is the folder.
      image: uint8[height, width, 3].
      train_ids: uint8[height, width]; ignored pixels are written as label id 4, static.
    """
    arrays = (image, labels.label_ids(train_ids))
    for file, array in zip(_files(root, split, name), arrays, strict=True):
        with artefacts.writing(file) as out:
            Image.fromarray(array).save(out, format="png")


def _files(root: str, split: str, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    base, city = pathlib.Path(root), name.split("_")[0]
    return (
        base / "leftImg8bit" / split / city / (name + _IMAGE),
        base / "gtFine" / split / city / (name + _LABEL_IDS),
    )
