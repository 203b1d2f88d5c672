"""Image files: read, looked at before they are needed, and identified by what they hold."""

import io
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from qnas_jax.data.batching import prefetch
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, disk

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

SAMPLE = 16  # images of a split whose content is looked at, spread evenly
_END_BYTES = 1024  # of a file's beginning and of its end
# What is among the last bytes of a whole file. Files of other formats are always decoded.
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_END = 16  # bytes
_THREADS = 4  # that look at files


def sample(count: int, most: int = SAMPLE) -> list[int]:
    """Returns at most so many indices below `count`, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def opened(file: pathlib.Path, modes: tuple[str, ...]) -> Image.Image:
    """Decodes the image of a file.

    Raises:
      InputError: The file is damaged, cannot be read, or is not 8-bit of one of the modes.
    """
    return _read(file, io.BytesIO(disk.read(file)), modes, lambda image: True)


def header(file: pathlib.Path, modes: tuple[str, ...]) -> tuple[int, int]:
    """Returns width and height. A file without its format's end is decoded, as it may be cut.

    Raises:
      InputError: As of `opened`, without what only decoding finds.
    """

    def is_suspect(image: Image.Image) -> bool:
        end = _ENDS.get(image.format or "")
        return end is None or end not in _last(file, _END)

    return _read(file, file, modes, is_suspect).size


def fingerprint(names: Sequence[str], groups: Sequence[Sequence[pathlib.Path]]) -> str:
    """Returns a short hash of what files hold, wherever they lie.

    Of the names and sizes of all, and of the first and last bytes of some: quick, and what
    it does not find is a change of bytes that leaves all sizes as they are.

    Args:
      names: A name for each image, without the folder of the data set.
      groups: The files of each image.
    """
    sizes = [[file.stat().st_size for file in group] for group in groups]
    ends = [_first_and_last(f).hex() for i in sample(len(groups)) for f in groups[i]]
    return artefacts.digest([list(names), sizes, ends])


def look_at(check: Callable[[int], Found], count: int, what: str) -> list[Found]:
    """Returns `check(i)` for all images, and logs how long that took.

    Args:
      check: May raise InputError.
      count: Number of images.
      what: What is looked at, for the log.

    Raises:
      InputError: Of the first image that is refused, and how many more are.
    """
    begin, found, refused = time.monotonic(), [], []

    def outcome(index: int) -> tuple[Found | None, InputError | None]:
        try:
            return check(index), None
        except InputError as error:
            return None, error

    for result, error in prefetch(outcome, 0, count, _THREADS):
        found.append(result)
        if error:
            refused.append(error)
    if len(refused) > 1:
        raise InputError(f"{refused[0]}; {len(refused) - 1} more images cannot be used")
    if refused:
        raise refused[0]
    logger.info("%s: looked at %d in %.1f s", what, count, time.monotonic() - begin)
    return found


def _first_and_last(file: pathlib.Path) -> bytes:
    with file.open("rb") as data:
        return data.read(_END_BYTES) + _last(file, _END_BYTES)


def _last(file: pathlib.Path, count: int) -> bytes:
    with file.open("rb") as data:
        data.seek(max(file.stat().st_size - count, 0))
        return data.read(count)


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
