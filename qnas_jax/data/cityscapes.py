"""Cityscapes' folder layout: one reader for the real data set and for written Streets.

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png      the picture, RGB
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png       its label ids, 8-bit grey

References:
  Cordts et al., 2016, https://arxiv.org/abs/1604.01685; cityscapes-dataset.com.
"""

import pathlib

import numpy as np
from PIL import Image

from qnas_jax.data import labels
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts

_PICTURE = "_leftImg8bit.png"
_LABEL = "_gtFine_labelIds.png"


class Cityscapes:
    """The pictures of one split with their train ids, read when asked for.

    Attributes:
      pictures: The picture files, in order of their names.
    """

    def __init__(self, root: str, split: str, height: int, width: int, count: int = 0):
        """Lists the files and checks that each picture has its labels.

        Args:
          root: The folder that holds `leftImg8bit` and `gtFine`.
          split: "train" or "val".
          height: Pictures are resized to this height where they have another.
          width: Likewise.
          count: How many pictures to take, the first by name; 0 takes all.

        Raises:
          InputError: A folder or a file is missing, or there are too few pictures.
        """
        self._size = (width, height)
        self._folder = pathlib.Path(root)
        pictures = self._folder / "leftImg8bit" / split
        if not pictures.is_dir():
            raise InputError(
                f"{pictures}: no such folder; data.root must hold leftImg8bit/{split} "
                f"and gtFine/{split} as Cityscapes' archives unpack"
            )
        self.pictures = sorted(pictures.glob("*/*" + _PICTURE))
        if not self.pictures:
            raise InputError(f"{pictures}: holds no CITY/*{_PICTURE}")
        if count > len(self.pictures):
            raise InputError(f"data.{split}_images={count}: {pictures} holds {len(self.pictures)}")
        self.pictures = self.pictures[: count or None]
        for picture in self.pictures:
            if not self._label_file(picture).is_file():
                raise InputError(
                    f"{self._label_file(picture)}: missing, the labels of {picture.name}"
                )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8[height, width, 3] and train ids uint8[height, width].

        Raises:
          InputError: A file is damaged, or holds what it must not; the message names it.
        """
        picture = self.pictures[index]
        label_file = self._label_file(picture)
        image = _open(picture, ("RGB",))
        label = _open(label_file, ("L", "P"))
        if image.size != label.size:
            raise InputError(
                f"{label_file}: is {label.width} x {label.height} pixels, "
                f"its picture {image.width} x {image.height}"
            )
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
            label = label.resize(self._size, Image.Resampling.NEAREST)
        try:
            return np.asarray(image), labels.train_ids(np.asarray(label))
        except ValueError as error:
            raise InputError(f"{label_file}: {error}") from None

    def _label_file(self, picture: pathlib.Path) -> pathlib.Path:
        name = picture.name.removesuffix(_PICTURE) + _LABEL
        return self._folder / "gtFine" / picture.parent.parent.name / picture.parent.name / name


def _open(file: pathlib.Path, modes: tuple[str, ...]) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    if image.mode not in modes:
        raise InputError(f"{file}: is {image.mode}, must be {' or '.join(modes)}")
    return image


def exists(root: str, split: str, name: str) -> bool:
    """Whether a picture and its labels have been written; see `write`."""
    return all(file.exists() for file in _files(root, split, name))


def write(root: str, split: str, name: str, picture: np.ndarray, train_ids: np.ndarray) -> None:
    """Writes one picture and its labels into Cityscapes' layout.

    Args:
      root: The folder that holds, or will hold, `leftImg8bit` and `gtFine`.
      split: "train" or "val".
      name: `city_xxxxxx_yyyyyy`; the city is the folder.
      picture: uint8[height, width, 3].
      train_ids: uint8[height, width]; ignored pixels are written as label id 4, static.
    """
    arrays = (picture, labels.label_ids(train_ids))
    for file, array in zip(_files(root, split, name), arrays, strict=True):
        with artefacts.writing(file) as out:
            Image.fromarray(array).save(out, format="png")


def _files(root: str, split: str, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    base, city = pathlib.Path(root), name.split("_")[0]
    return (
        base / "leftImg8bit" / split / city / (name + _PICTURE),
        base / "gtFine" / split / city / (name + _LABEL),
    )
