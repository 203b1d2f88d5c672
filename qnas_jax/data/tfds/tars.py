"""Where files lie in tar archives, so that they are read in any order without unpacking."""

import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from qnas_jax.errors import InputError
from qnas_jax.run.log import Progress

_BLOCK = 512  # bytes; an archive ends with blocks of zeros


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
      name: Its name.
      offset: Where it begins, bytes.
      size: Bytes.
      label: Name of its class.
    """

    name: str
    offset: int
    size: int
    label: str = ""


def members(path: pathlib.Path) -> list[Member]:
    """The files of an archive.

    Raises:
      InputError: The archive is cut or damaged, or holds no files.
    """
    with path.open("rb") as file:
        return _checked(path, list(_walk(path, file)))


def of_classes(path: pathlib.Path) -> list[Member]:
    """The files of an archive that holds one archive CLASS.tar for each class.

    Raises:
      InputError: The archive, or one in it, is cut or damaged, or holds no files.
    """
    found: list[Member] = []
    progress = Progress(f"reading {path.name}", path.stat().st_size)
    with path.open("rb") as file:
        for inner in _walk(path, file):
            label = inner.name.removesuffix(".tar")
            if label == inner.name:
                raise InputError(f"{path}: holds {inner.name}, must hold CLASS.tar alone")
            after = file.tell()
            file.seek(inner.offset)
            found += [member._replace(label=label) for member in _walk(path, file)]
            file.seek(after)
            progress.show(inner.offset + inner.size)
    return _checked(path, found)


def _walk(path: pathlib.Path, file: BinaryIO) -> Iterator[Member]:
    """The files of the archive that begins where `file` stands.

    Without the checks of the end, an archive that was cut between two files would seem complete.
    """
    try:
        tar: Any = tarfile.open(fileobj=file, mode="r:")
        while member := tar.next():
            tar.members = []  # it would keep all
            if member.isfile():
                name = pathlib.PurePath(member.name).name
                yield Member(name, member.offset_data, member.size)
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        reason = f"was cut or is damaged ({error}); download it again"
        raise InputError(f"{path}: {reason}") from None


def _checked(path: pathlib.Path, found: list[Member]) -> list[Member]:
    if not found:
        raise InputError(f"{path}: holds no images; it must be the official archive")
    return found
