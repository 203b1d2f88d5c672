"""Cityscapes' folder layout: one reader for the real data set and for written Streets.

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png      the picture, RGB
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png       its label ids, 8-bit grey

References:
  Cordts et al., 2016, https://arxiv.org/abs/1604.01685; cityscapes-dataset.com.
"""

import io
import pathlib

import numpy as np
from PIL import Image

from qnas_jax.data import labels
from qnas_jax.data.batching import prefetch
from qnas_jax.errors import InputError
from qnas_jax.metrics import IGNORE
from qnas_jax.run import artefacts, disk
from qnas_jax.run.listing import listed

_PICTURE = "_leftImg8bit.png"
_LABEL = "_gtFine_labelIds.png"
_PICTURE_MODES, _LABEL_MODES = ("RGB",), ("L", "P")
_SAMPLE = 16  # pairs of a split whose content is looked at, spread evenly
_END_BYTES = 1024  # of a file's beginning and of its end
_PNG_END = 16  # bytes; the last chunk of a whole PNG file, IEND, lies in them
_THREADS = 4  # that look at files


class Cityscapes:
    """The pictures of one split with their train ids, read when asked for.

    Attributes:
      pictures: The picture files, in order of their names.
      label_files: The file of each picture's labels.
    """

    names = labels.NAMES
    labels_per = "pixel"

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
        self._labels = pathlib.Path(root) / "gtFine" / split
        pictures = pathlib.Path(root) / "leftImg8bit" / split
        if not pictures.is_dir():
            raise InputError(
                f"{pictures}: no such folder; data.root must hold leftImg8bit/{split} "
                f"and gtFine/{split} as Cityscapes' archives unpack"
            )
        self.pictures = listed(pictures, "*/*" + _PICTURE)
        if not self.pictures:
            raise InputError(f"{pictures}: holds no CITY/*{_PICTURE}")
        if count > len(self.pictures):
            raise InputError(f"data.{split}_images={count}: {pictures} holds {len(self.pictures)}")
        self.pictures = self.pictures[: count or None]
        self.label_files = [self._label_file(picture) for picture in self.pictures]
        for picture, label_file in zip(self.pictures, self.label_files, strict=True):
            if not label_file.is_file():
                raise InputError(f"{label_file}: missing, the labels of {picture.name}")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8[height, width, 3] and train ids uint8[height, width].

        Raises:
          InputError: A file is damaged, or holds what it must not; the message names it.
        """
        image = _open(self.pictures[index], _PICTURE_MODES)
        label = _open(self.label_files[index], _LABEL_MODES)
        self._check_sizes(index, image.size, label.size)
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        return np.asarray(image), self._train_ids(index, label)

    def content(self) -> str:
        """A short hash of what the files hold, wherever they lie.

        Of the names and sizes of all, and of the first and last bytes of some: quick, and what
        it does not find is a change of bytes that leaves all sizes as they are.
        """
        pairs = list(zip(self.pictures, self.label_files, strict=True))
        names = [f"{picture.parent.name}/{picture.name}" for picture in self.pictures]
        sizes = [[file.stat().st_size for file in pair] for pair in pairs]
        ends = [_ends(file).hex() for index in self._sample() for file in pairs[index]]
        return artefacts.digest([names, sizes, ends])

    def check(self) -> None:
        """Looks at the files before work that takes hours: at all headers, and into some files.

        Raises:
          InputError: One of them cannot be used, or no pixel of the split has a class.
        """
        for _ in prefetch(self._check_headers, 0, len(self), _THREADS):
            pass
        sample = self._sample()
        found = list(prefetch(lambda i: _has_class(self[sample[i]][1]), 0, len(sample), _THREADS))
        if not (any(found) or any(prefetch(self._counts, 0, len(self), _THREADS))):
            ids = ", ".join(str(label_id) for _, label_id, _ in labels.CLASSES)
            raise InputError(
                f"{self._labels}: all labels of {len(self)} images are ignored; "
                f"some pixels must have the label ids of classes ({ids})"
            )

    def _sample(self) -> list[int]:
        count = min(len(self), _SAMPLE)
        return np.linspace(0, len(self) - 1, count).round().astype(int).tolist()

    def _counts(self, index: int) -> bool:
        """Whether a pixel of a label file has a class."""
        return _has_class(self._train_ids(index, _open(self.label_files[index], _LABEL_MODES)))

    def _check_headers(self, index: int) -> None:
        picture_size = _header(self.pictures[index], _PICTURE_MODES)
        self._check_sizes(index, picture_size, _header(self.label_files[index], _LABEL_MODES))

    def _check_sizes(self, index: int, picture: tuple[int, int], label: tuple[int, int]) -> None:
        if picture != label:
            raise InputError(
                f"{self.label_files[index]}: is {label[0]} x {label[1]} pixels, "
                f"its picture {picture[0]} x {picture[1]}"
            )

    def _train_ids(self, index: int, label: Image.Image) -> np.ndarray:
        if label.size != self._size:
            label = label.resize(self._size, Image.Resampling.NEAREST)
        try:
            return labels.train_ids(np.asarray(label))
        except ValueError as error:
            raise InputError(f"{self.label_files[index]}: {error}") from None

    def _label_file(self, picture: pathlib.Path) -> pathlib.Path:
        name = picture.name.removesuffix(_PICTURE) + _LABEL
        return self._labels / picture.parent.name / name


def _has_class(train_ids: np.ndarray) -> bool:
    return bool((train_ids != IGNORE).any())


def _ends(file: pathlib.Path) -> bytes:
    """The first and the last bytes of a file."""
    with file.open("rb") as data:
        return data.read(_END_BYTES) + _last(file, _END_BYTES)


def _last(file: pathlib.Path, count: int) -> bytes:
    with file.open("rb") as data:
        data.seek(max(file.stat().st_size - count, 0))
        return data.read(count)


def _open(file: pathlib.Path, modes: tuple[str, ...]) -> Image.Image:
    """The image of a file, decoded."""
    return _read(file, io.BytesIO(disk.read(file)), modes, lambda image: True)


def _header(file: pathlib.Path, modes: tuple[str, ...]) -> tuple[int, int]:
    """Width and height; a file that does not end as PNG does, as one cut short, is decoded."""
    return _read(file, file, modes, lambda image: b"IEND" not in _last(file, _PNG_END)).size


def _read(file, source, modes, to_decode) -> Image.Image:
    try:
        with Image.open(source) as image:
            _check_mode(file, image, modes)
            if to_decode(image):
                image.load()
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fault = disk.fault(error)
        if fault:
            raise disk.refusal(file, fault) from None
        raise InputError(f"{file}: cannot be read ({error})") from None
    return image


def _check_mode(file: pathlib.Path, image: Image.Image, modes: tuple[str, ...]) -> None:
    """Refuses other modes, and values of other than 8 bits, which would be scaled to 8."""
    stored = [tile[3] for tile in getattr(image, "tile", ()) if isinstance(tile[3], str)]
    scaled = image.mode != "P" and any(";" in how for how in stored)
    if image.mode not in modes or scaled:
        found = f"{image.mode} stored as {stored[0]}" if scaled else image.mode
        bits = " of 8 bits" if scaled else ""
        raise InputError(f"{file}: is {found}, must be {' or '.join(modes)}{bits}")


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
