"""Official archives of data sets, checked before anything is made of them.

Each function opens the archives in a folder, looks whether they are complete, and gives the splits
with all that is needed to make their examples, in the order in which they will be written:
Cityscapes by names, as the reader of its folders has them; the others in TFDS's own order, which
is that of a hash and so mixes the classes.
"""

import contextlib
import gzip
import hashlib
import io
import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qnas_jax.data.tfds import tars
from qnas_jax.errors import InputError

# The archives of each data set that can be prepared.
ARCHIVES = {
    "cityscapes": ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
    "cifar10": ("cifar-10-binary.tar.gz",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}
_CITYSCAPES_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_CITYSCAPES_SIZE = (2048, 1024)  # width and height; TFDS fixes them
_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_BATCHES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR_ROW = 1 + 3 * 32 * 32  # bytes: the class, then red, green, blue
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      name: TFDS's name of it.
      keys: One for each example, in the order of writing.
      size_bytes: What the examples take on disk, about.
      example: Makes the features of an example from its key.
    """

    name: str
    keys: Sequence[Any]
    size_bytes: int
    example: Callable[[Any], dict[str, Any]]


class Opened(NamedTuple):
    """The archives of a data set.

    Attributes:
      splits: The splits that have examples.
      names: Names of the classes, () where TFDS knows them.
    """

    splits: list[Split]
    names: tuple[str, ...] = ()


def files(name: str, manual: pathlib.Path) -> list[pathlib.Path]:
    """The archives of a data set.

    Raises:
      InputError: The data set has none that are known, or one is missing.
    """
    if name not in ARCHIVES:
        raise InputError(
            f"--name={name!r}: must be one of {', '.join(ARCHIVES)}; prepare others with "
            "tensorflow-datasets itself: tfds build NAME"
        )
    found = [manual / archive for archive in ARCHIVES[name]]
    lacking = [file.name for file in found if not file.is_file()]
    if lacking:
        raise InputError(
            f"{manual}: holds no {' and no '.join(lacking)}; put what is missing there, "
            "or name another folder with --manual"
        )
    return found


@contextlib.contextmanager
def opened(name: str, manual: pathlib.Path) -> Iterator[Opened]:
    """Opens the archives of a data set and checks them.

    Args:
      name: One of `ARCHIVES`.
      manual: The folder with the archives.

    Raises:
      InputError: One is missing, cut, or has other content.
    """
    of_set = {"cityscapes": _cityscapes, "cifar10": _cifar10, "imagenet2012": _imagenet2012}
    with contextlib.ExitStack() as stack:
        yield of_set[name](stack, *files(name, manual))


def _cityscapes(
    stack: contextlib.ExitStack, image_file: pathlib.Path, label_file: pathlib.Path
) -> Opened:
    images, labels = (stack.enter_context(_zip(file)) for file in (image_file, label_file))
    held = set(labels.namelist())
    splits = []
    for split, folder in _CITYSCAPES_SPLITS.items():
        pattern = re.compile(rf"leftImg8bit/{folder}/([^/]+)/([^/.][^/]*)_leftImg8bit\.png")
        pairs = [
            (name, f"gtFine/{folder}/{found[1]}/{found[2]}_gtFine_labelIds.png", found[2])
            for name in sorted(images.namelist())
            if (found := pattern.fullmatch(name))
        ]
        for name, label, _ in pairs:
            if label not in held:
                raise InputError(f"{label_file}: holds no {label}, the labels of {name}")
        if not pairs and split != "test":
            what = f"leftImg8bit/{folder}/CITY/*_leftImg8bit.png"
            raise InputError(f"{image_file}: holds no {what}; it must be the official archive")
        size = sum(images.getinfo(i).file_size + labels.getinfo(j).file_size for i, j, _ in pairs)
        if pairs:
            splits.append(Split(split, pairs, size, lambda pair: _pair(images, labels, pair)))
    return Opened(splits)


def _pair(images: zipfile.ZipFile, labels: zipfile.ZipFile, pair: tuple) -> dict[str, Any]:
    image, label, image_id = pair
    found = {"image_left": _member(images, image), "segmentation_label": _member(labels, label)}
    for archive, name, data in zip((images, labels), pair[:2], found.values(), strict=True):
        with _image(f"{archive.filename}: {name}", data) as header:
            if header.size != _CITYSCAPES_SIZE:
                size = "{} x {}".format(*header.size)
                raise InputError(f"{archive.filename}: {name} is {size}, must be 2048 x 1024")
    return {"image_id": image_id, **found}


def _zip(file: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise _cut(file, error) from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive.filename}: {name} is damaged ({error})") from None


def _cifar10(stack: contextlib.ExitStack, file: pathlib.Path) -> Opened:
    """Reads the whole archive, 186 MB: its last bytes say whether it is complete."""
    try:
        with gzip.open(file) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            held = {
                pathlib.PurePath(member.name).name: tar.extractfile(member).read()  # pyright: ignore
                for member in tar
                if member.isfile() and _CIFAR_FOLDER in member.name
            }
            while stream.read(2**20):  # the checksum is behind the last file
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _cut(file, error) from None
    names = ("batches.meta.txt", *_CIFAR_BATCHES["train"], *_CIFAR_BATCHES["test"])
    for name in names:
        if name not in held:
            raise InputError(f"{file}: holds no {_CIFAR_FOLDER}/{name}; take the binary version")
    classes = tuple(held["batches.meta.txt"].decode().split())
    splits = []
    for split, batches in _CIFAR_BATCHES.items():
        data = np.frombuffer(b"".join(held[name] for name in batches), np.uint8)
        if data.size % _CIFAR_ROW or data[::_CIFAR_ROW].max() >= len(classes):
            raise InputError(f"{file}: the batches of {split} are damaged; download it again")
        rows = data.reshape(-1, _CIFAR_ROW)
        keys = _mixed(split, range(len(rows)), str)
        splits.append(Split(split, keys, data.size, _Rows(split, rows)))
    return Opened(splits, classes)


class _Rows(NamedTuple):
    """Makes examples of CIFAR-10 from uint8[n, _CIFAR_ROW]."""

    split: str
    rows: np.ndarray

    def __call__(self, key: int) -> dict[str, Any]:
        pixels = self.rows[key, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
        png = _encoded(Image.fromarray(np.ascontiguousarray(pixels)), "png")
        return {
            "id": f"{self.split}_{key:05d}",
            "image": png,
            "label": int(self.rows[key, 0]),
        }


def _imagenet2012(
    stack: contextlib.ExitStack, train_file: pathlib.Path, val_file: pathlib.Path
) -> Opened:
    import tensorflow_datasets as tfds

    folder = tfds.core.tfds_path("datasets/imagenet2012")
    classes = (folder / "labels.txt").read_text().split()
    of_val = (folder / "validation_labels.txt").read_text().split()
    train, val = tars.of_classes(train_file), tars.members(val_file)
    if unknown := {member.label for member in train} - set(classes):
        raise InputError(f"{train_file}: holds {min(unknown)}.tar, which is no class of ImageNet")
    for place, member in enumerate(val):
        number = _VAL_NAME.fullmatch(member.name)
        if not number or not 1 <= int(number[1]) <= len(of_val):
            raise InputError(f"{val_file}: holds {member.name}, which is no image of this split")
        val[place] = member._replace(label=of_val[int(number[1]) - 1])
    splits = []
    for split, file, found in (("train", train_file, train), ("validation", val_file, val)):
        data = stack.enter_context(file.open("rb"))
        keys = _mixed(split, found, lambda member: member.name)
        size = sum(member.size for member in found)
        splits.append(Split(split, keys, size, lambda m, data=data: _photo(data, m)))
    return Opened(splits)


def _photo(archive: Any, member: tars.Member) -> dict[str, Any]:
    """An example of ImageNet; the few images that are no JPEG in RGB become that, as in TFDS."""
    archive.seek(member.offset)
    data = archive.read(member.size)
    with _image(f"{archive.name}: {member.name}", data) as image:
        if image.format != "JPEG" or image.mode == "CMYK":
            # As TFDS encodes them with TensorFlow: subsampling 2 is 4:2:0.
            data = _encoded(image.convert("RGB"), "jpeg", quality=100, subsampling=2)
    return {"file_name": member.name, "image": data, "label": member.label}


def _mixed(split: str, keys: Sequence[Any], text: Callable[[Any], str]) -> list[Any]:
    """Keys in the order of TFDS: by the MD5 hash of their texts, salted with the split's name."""
    return sorted(keys, key=lambda key: hashlib.md5((split + text(key)).encode()).digest())


def _image(what: str, data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{what} is no image ({error})") from None


def _encoded(image: Image.Image, form: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def _cut(file: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"{file}: was cut or is damaged ({error}); download it again")
