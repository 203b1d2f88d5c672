"""Reads files, and separates errors of the file system from damaged files.

An error of the system (a stale handle, no memory, a failing disk, no permission) says nothing
of a file's content, which may be whole. So files are read first and parsed afterwards: only a
file that was read and cannot be parsed is damaged.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import IO

from qnas_jax.errors import InputError

logger = logging.getLogger(__name__)

# Errors of system calls that a file system does not support.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_OF_THE_PATH = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}  # something else is there
# Libraries wrap the system's errors; some keep only their text.
_NUMBER = re.compile(r"(?:\[Errno |os_error_code=')(\d+)")
_WORDS = {
    os.strerror(number): number
    for number in (
        *(errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EBUSY),
        *(errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    )
}
_FILE = re.compile(r"""['"](/[^'"]+)['"]""")


class Missing(InputError):
    """There is no such file."""


def read(path: pathlib.Path) -> bytes:
    """The content of a file.

    Raises:
      Missing: There is no such file.
      InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, must be a file") from None
    except OSError as error:
        raise refusal(path, error) from None


def refusal(path: pathlib.Path, error: OSError) -> InputError:
    """The error for a file that the system cannot read."""
    way_out = "let this user read it" if isinstance(error, PermissionError) else "try again"
    return InputError(f"{path}: cannot be read ({error.strerror}); {way_out}")


def fault(error: BaseException | None) -> OSError | None:
    """The system's error in an error: the error itself, its cause, or one in its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno not in _OF_THE_PATH:
            return error
        text = str(error)
        numbers = [int(number) for number in _NUMBER.findall(text)]
        numbers += [number for words, number in _WORDS.items() if words in text]
        for number in numbers:
            if number not in _OF_THE_PATH:
                file = _FILE.search(text)
                return OSError(number, os.strerror(number), file and file[1])
        error = error.__cause__ or error.__context__
    return None


def check_readable(path: pathlib.Path, error: BaseException) -> None:
    """Checks that a file, or all files of a folder, can be read, so that their content is at fault.

    Call it when a library that reads files by itself has failed.

    Raises:
      InputError: A file cannot be read.
    """
    found = fault(error)
    if found and found.filename:
        raise refusal(pathlib.Path(found.filename), found) from None
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_dir():
            read(file)
    if found:
        raise refusal(path, found) from None


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Within, a system's error that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def sync(file: IO) -> None:
    """Writes a file to the disk, if its file system can do that."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Locks the folder for this process alone, if the file system has locks.

    Raises:
      InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            with naming(path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is at work in it") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            line = "%s: its file system has no locks (%s); start no second process in it"
            logger.warning(line, folder, error.strerror)
        yield
