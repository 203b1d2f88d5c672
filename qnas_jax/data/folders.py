"""Images of one class each, in a folder for each class.

ROOT/train/CLASS/*.png, *.jpg, ...
ROOT/val/CLASS/...                   no class that `train` does not have
"""

import pathlib

import numpy as np

from qnas_jax.data import files
from qnas_jax.data.resize import covered
from qnas_jax.errors import InputError
from qnas_jax.run.listing import listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
_MODES = ("RGB", "L")  # grey becomes RGB; others would lose something, or need a choice
_DECODED = 256  # images of a split that are decoded before a run


class Folders:
    """The images of one split, read when asked for.

    An image is scaled until it covers `height` x `width`, and its middle is taken.

    Attributes:
      images: The image files. The classes take turns, so that the first few have all classes.
      names: Names of the classes: the folders of the training split, sorted.
    """

    labels_per = "image"

    def __init__(self, root: str, split: str, height: int, width: int, count: int = 0):
        """Lists the files.

        Args:
          root: The folder that holds `train` and `val`.
          split: "train" or "val".
          height: Height of the images in pixels.
          width: Their width.
          count: How many images to take, as many of each class as possible; 0 takes all.

        Raises:
          InputError: A folder is missing or empty, a class is unknown, or there are too few
            images.
        """
        self._size = (height, width)
        self._folder = folder = pathlib.Path(root) / split
        self.names = tuple(_classes(pathlib.Path(root) / "train"))
        if len(self.names) < 2:
            raise InputError(f"{folder.parent / 'train'}: holds one class, must hold at least two")
        unknown = sorted(set(_classes(folder)) - set(self.names))
        if unknown:
            raise InputError(f"{folder / unknown[0]}: {folder.parent / 'train'} has no such class")
        by_class = [_images(folder / name) for name in self.names]
        for name, found in zip(self.names, by_class, strict=True):
            if split == "train" and not found:
                raise InputError(f"{folder / name}: holds no image ({', '.join(SUFFIXES)})")
        turns = [
            (place, label, file)
            for label, found in enumerate(by_class)
            for place, file in enumerate(found)
        ]
        if not turns:
            raise InputError(f"{folder}: holds no CLASS/ with images ({', '.join(SUFFIXES)})")
        if count > len(turns):
            raise InputError(f"data.{split}_images={count}: {folder} holds {len(turns)}")
        turns = sorted(turns)[: count or None]
        self.images = [file for _, _, file in turns]
        self._labels = [np.array(label, np.int32) for _, label, _ in turns]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8[height, width, 3] and its class int32[].

        Raises:
          InputError: The file is damaged, or no 8-bit RGB or grey; the message names it.
        """
        image = files.opened(self.images[index], _MODES).convert("RGB")
        return np.asarray(covered(image, *self._size)), self._labels[index]

    def content(self) -> str:
        """A short hash of what the files hold; see `files.fingerprint`."""
        names = [f"{image.parent.name}/{image.name}" for image in self.images]
        return files.fingerprint(names, [(image,) for image in self.images])

    def check(self) -> None:
        """Looks at the files before work that takes hours: at all headers, and into some files.

        Raises:
          InputError: One of them cannot be used.
        """
        headers, whole = f"{self._folder}: headers", f"{self._folder}: whole images"
        files.look_at(lambda i: files.header(self.images[i], _MODES), len(self), headers)
        some = files.sample(len(self), _DECODED)
        files.look_at(lambda i: files.opened(self.images[some[i]], _MODES), len(some), whole)


def _classes(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; data.root must hold train/CLASS and val/CLASS")
    found = [f.name for f in listed(folder, "*") if f.is_dir()]
    if not found:
        raise InputError(f"{folder}: holds no folder; it must hold one for each class")
    return found


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return [file for file in listed(folder, "*") if file.suffix.lower() in SUFFIXES]
