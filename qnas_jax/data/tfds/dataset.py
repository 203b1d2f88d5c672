"""A split of a prepared data set, as images with labels."""

import functools
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from qnas_jax.data import files, labels
from qnas_jax.data.batching import prefetch
from qnas_jax.data.resize import covered
from qnas_jax.data.tfds import features, find, records
from qnas_jax.errors import InputError
from qnas_jax.metrics import IGNORE
from qnas_jax.run import artefacts

_CITYSCAPES = "cityscapes"  # the one data set whose labels are label ids
_RGB = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1")  # modes that become RGB as they are
_THREADS = 4  # that decode examples


class Tfds:
    """The images of one split with their labels, read when asked for; safe in several threads.

    Images with a class each are cut to the proportions of the wanted size and resized; images with
    labels of pixels are resized whole, their labels by the nearest pixel.

    Attributes:
      folder: The folder of the prepared data set.
      labels_per: "pixel" or "image", what has a label.
    """

    def __init__(self, root: str, name: str, split: str, height: int, width: int, count: int = 0):
        """Finds the data set and what of it is used; reads no image.

        Args:
          root: TFDS's data_dir.
          name: NAME, NAME/CONFIG, or either with :VERSION.
          split: "train" or "val"; the latter is validation, or where there is none, test.
          height: Of the images that this data set gives, pixels.
          width: Likewise.
          count: How many images to take, the first ones; 0 takes all.

        Raises:
          InputError: The data set is not prepared, has no such split, no labels, or too few images.
        """
        self._given = (root, name)
        self._size = (width, height)
        self.folder = find.prepared(root, name)
        self._version = str(self.folder.relative_to(root))
        builder = _builder(self.folder)
        self._info = builder.info
        self._used = features.used(self._info)
        self._parser = features.parser(self._info.features)
        self.labels_per = self._used.labels_per
        self._shards = records.shards(self._info, find.split_of(self._info, split))
        held = sum(self._shards.counts)
        if count > held:
            raise InputError(
                f"data.{split}_images={count}: {self._version} {self._shards.name} holds {held}"
            )
        self._count = count or held
        self._records = records.opened(builder, self._shards)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels.

        Where a data set has none for labels of pixels, they are numbers, up to the highest one in
        the labels of its training split, all of which are read for that.
        """
        return self._names

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        if self._info.name == _CITYSCAPES:
            return labels.NAMES
        if self._used.names:
            return self._used.names
        train = Tfds(*self._given, "train", *self._size[::-1])
        highest = max(prefetch(train._highest, 0, len(train), _THREADS))
        return tuple(str(label) for label in range(highest + 1))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8[height, width, 3]; train ids uint8[height, width] or the class, int32[].

        Raises:
          InputError: A file is damaged, or holds what it must not; the message names it.
        """
        example = self._example(index)
        image = self._image(index, self._used.image, example, _RGB).convert("RGB")
        if self.labels_per == "image":
            image = covered(image, *self._size[::-1])
            return np.asarray(image), self._class(index, int(example[self._used.label]))
        label = self._image(index, self._used.label, example, ("L", "P"))
        if image.size != label.size:
            raise self._wrong(
                index,
                f"its labels are {label.size[0]} x {label.size[1]} pixels, its image "
                f"{image.size[0]} x {image.size[1]}",
            )
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
            label = label.resize(self._size, Image.Resampling.NEAREST)
        return np.asarray(image), self._train_ids(index, np.asarray(label))

    def content(self) -> str:
        """A short hash of what the shards hold, wherever they lie; see `files.fingerprint`."""
        shards = self._shards.files
        held = files.fingerprint([file.name for file in shards], [(file,) for file in shards])
        identity = [self._version, self._shards.name, len(self), list(self._used)]
        return artefacts.digest([identity, self._shards.counts, held])

    def check(self) -> None:
        """Looks at all files, and decodes some examples, before work that takes hours.

        Raises:
          InputError: One of them cannot be used, or no pixel of the split has a class.
        """
        records.check(self._records, self._shards)
        sample = files.sample(len(self))
        found = prefetch(lambda i: self._counts(sample[i]), 0, len(sample), _THREADS)
        if not any(list(found)) and not any(prefetch(self._counts, 0, len(self), _THREADS)):
            raise InputError(
                f"{self.folder}: all labels of the {len(self)} images of split "
                f"{self._shards.name} are ignored; some pixels must have a class"
            )

    def _counts(self, index: int) -> bool:
        """Whether anything in an example has a class; all of it is decoded."""
        return bool((self[index][1] != IGNORE).any()) or self.labels_per == "image"

    def _highest(self, index: int) -> int:
        """The highest label of an example's pixels."""
        label = self._image(index, self._used.label, self._example(index), ("L", "P"))
        values = np.asarray(label)
        return int(values.max(initial=0, where=values != IGNORE))

    def _example(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        try:
            return self._parser.parse_example(self._records[index])
        except (InputError, OSError):  # the latter says nothing of what the file holds
            raise
        except Exception as error:  # protobuf's and ArrayRecord's have no common type
            raise self._wrong(index, f"cannot be read ({' '.join(str(error).split())})") from None

    def _image(self, index: int, key: str, example: Any, modes: tuple[str, ...]) -> Image.Image:
        try:
            with Image.open(io.BytesIO(example[key])) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise self._wrong(index, f"its {key} cannot be decoded ({error})") from None
        if image.mode not in modes:
            kinds = "8-bit colours or greys" if modes == _RGB else "8-bit numbers of classes"
            raise self._wrong(index, f"its {key} is of mode {image.mode}, must be {kinds}")
        return image

    def _class(self, index: int, label: int) -> np.ndarray:
        if not 0 <= label < len(self.names):
            reason = f"its class is {label}, must lie in 0..{len(self.names) - 1}"
            hint = "; this split has no labels" if label < 0 else ""
            raise self._wrong(index, reason + hint)
        return np.asarray(label, np.int32)

    def _train_ids(self, index: int, label: np.ndarray) -> np.ndarray:
        if self._info.name == _CITYSCAPES:
            try:
                return labels.train_ids(label)
            except ValueError as error:
                raise self._wrong(index, str(error)) from None
        wrong = label[(label >= len(self.names)) & (label != IGNORE)]
        if wrong.size:
            last = len(self.names) - 1
            raise self._wrong(index, f"label {wrong.max()}: labels lie in 0..{last}, or are 255")
        return label

    def _wrong(self, index: int, reason: str) -> InputError:
        return InputError(f"{self.folder}: example {index} of {self._shards.name}: {reason}")


def _builder(folder: pathlib.Path) -> Any:
    """What TFDS knows of a prepared data set, from the files of its folder alone."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of JSON, protobuf, or a feature whose code is not there
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: its metadata cannot be read ({reason})") from None
