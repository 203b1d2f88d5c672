"""Files of a run: written completely or not at all, hashed as plain data."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from qnas_jax.run import disk


def digest(value: Any) -> str:
    """Returns a short hash of plain data or dataclasses, the same on every machine."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """Returns plain JSON: dataclasses as dicts, tuples as lists, NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same content at the same time.
    part = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")
    try:
        with disk.naming(path), part.open("wb") as file:
            yield file
            file.flush()
            disk.sync(file)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # frees space on a full disk
            part.unlink()
        raise


@contextlib.contextmanager
def writing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder that appears under its name only when it is complete.

    An existing folder is kept, as it has the same content.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)  # NFS keeps what another process has open
    with disk.naming(path):
        yield part
        for file in part.iterdir():
            with file.open("rb") as written:
                disk.sync(written)
    if path.is_dir():  # file systems differ in what a rename onto a folder does
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.replace(path)


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a whole file, text as UTF-8."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes plain data or dataclasses as JSON."""
    write(path, json.dumps(plain(value), indent=2) + "\n")
