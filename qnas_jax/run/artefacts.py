"""What stages leave behind: whole or not at all, and marked with what they were made from.

A folder's `made_from.json` holds the settings and the hashes of everything upstream. A
stage whose mark matches is skipped if it is finished, resumed if not; a folder that was
made from something else is refused and stays as it is.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import platform
import shutil
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from qnas_jax.errors import InputError
from qnas_jax.run import disk
from qnas_jax.run.listing import listed

_MARK = "made_from.json"
# What parsing a damaged file raises.
DAMAGE = (
    *(EOFError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def digest(value: Any) -> str:
    """A short hash of plain data or dataclasses, the same on every machine."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, what is not finite as None: plain JSON."""
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
    """A file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same, one as good as the other.
    part = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")
    try:
        with disk.naming(path), part.open("wb") as file:
            yield file
            file.flush()
            disk.sync(file)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk needs its bytes
            part.unlink()
        raise


@contextlib.contextmanager
def writing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder that appears under its name only when it is complete.

    One that is there already stays: who wrote it wrote the same.
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
    """A whole file at once, text in UTF-8."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Plain data or dataclasses as JSON."""
    write(path, json.dumps(plain(value), indent=2) + "\n")


@contextlib.contextmanager
def reading(path: pathlib.Path, of: pathlib.Path | None = None) -> Iterator[BinaryIO]:
    """A file of a run, all of which has been read: what fails within is the file's damage.

    Args:
      path: The file.
      of: The folder that is written whole or not at all, if it is in one.

    Raises:
      InputError: It is missing, damaged, or the system does not give it.
    """
    try:
        content = disk.read(path)
    except disk.Missing as error:
        raise unreadable(of or path, ValueError("a file is missing") if of else error) from None
    try:
        yield io.BytesIO(content)
    except DAMAGE as error:
        raise unreadable(of or path, error) from None


def read_json(path: pathlib.Path, *names: str) -> Any:
    """What a JSON file of a run holds; with names, an object that has at least these.

    Raises:
      InputError: It is missing, damaged, or the system does not give it.
    """
    with reading(path) as file:
        found = json.load(file)
        for name in names:
            if not isinstance(found, dict) or name not in found:
                raise ValueError(f"it has no {name}")
    return found


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
    """What is said of a run's file that is missing, or was read and is damaged.

    A finished stage whose mark is gone goes on from all else that it holds (checkpoints, say),
    and writes the file again.
    """
    missing = isinstance(error, disk.Missing)
    state = "is missing" if missing else f"cannot be read ({error})"
    what = [] if missing else ["it"]
    what += [f"{_MARK} beside it"] if is_finished(path.parent) else []
    delete = f"delete {' and '.join(what)}, then " if what else ""
    return InputError(f"{path}: {state}; {delete}run launch/main.py again")


def is_begun(folder: pathlib.Path) -> bool:
    """Whether a folder holds a stage."""
    return (folder / _MARK).exists()


def begun_with(folder: pathlib.Path, name: str) -> Any:
    """What a stage that was begun was made from under that name; None if there is nothing.

    Raises:
      InputError: Its mark is damaged, or the system does not give it.
    """
    found = _read_mark(folder)
    return found["made_from"].get(name) if found else None


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a folder holds a stage that is finished, whatever it was made from.

    Raises:
      InputError: Its mark is damaged, or the system does not give it.
    """
    found = _read_mark(folder)
    return bool(found and found["done"])


def check_made_from(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Refuses a stage that was made from other settings than these, which are some of its own.

    Raises:
      InputError: It was, or is not begun.
    """
    found = _read_mark(folder)
    if not found:
        raise unreadable(folder / _MARK, disk.Missing())
    known = {name: value for name, value in found["made_from"].items() if name in settings}
    changes = _difference(known, settings)
    if changes:
        raise InputError(
            f"{folder} was made from other settings ({changes}); give the --config of its run"
        )


def _read_mark(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a stage's mark holds; None where there is none.

    Raises:
      InputError: It is damaged, or the system does not give it.
    """
    try:
        found = json.loads(disk.read(folder / _MARK))
        found = {name: found[name] for name in ("hash", "made_from", "done", "seconds", "began")}
        kinds = {"made_from": dict, "seconds": float, "began": float}
        return {**found, **{name: kind(found[name]) for name, kind in kinds.items()}}
    except disk.Missing:
        return None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _MARK}: is damaged ({error}); delete {folder}") from None


class Stage:
    """One stage's folder.

    Attributes:
      folder: Where its artefacts lie.
      hash: Of all that it is made from; goes into the stages behind it.
      done: Whether it is finished already.
      seconds: How long it took, stops left out.
    """

    def __init__(self, folder: pathlib.Path, made_from: dict[str, Any]):
        """Finds out how far the stage is; writes nothing.

        Args:
          folder: May be missing.
          made_from: Settings, and hashes of the stages that it reads.

        Raises:
          InputError: The folder was made from something else, or cannot be read.
        """
        if folder.is_file():
            raise InputError(f"{folder}: is a file, must be a folder")
        self.folder = folder
        self.hash = digest(_by_value(plain(made_from)))
        self.done, self.seconds = False, 0.0
        self._made_from, self._began = plain(made_from), time.time()
        found, written = _read_mark(folder), _times_written(folder)
        if not (found and written):  # nothing came of it: it may be made from anything
            return
        changes = _difference(found["made_from"], made_from)
        if changes:
            raise InputError(
                f"{folder} was made from other settings ({changes}); "
                f"take another --workdir, or delete {folder}"
            )
        # Its own hash, which the stages behind it know: another version may have hashed otherwise.
        self.hash, self.done, self.seconds = found["hash"], found["done"], found["seconds"]
        if not self.done:  # what the run that was stopped has taken, up to its last file
            self.seconds += max(max(written) - found["began"], 0.0)

    def begin(self) -> None:
        """Marks the stage as begun; does nothing if it is finished."""
        if not self.done:
            self._began = time.time()
            self._write()

    def finish(self) -> None:
        """Marks the stage as finished; does nothing if it is."""
        if not self.done:
            self.done = True
            self.seconds = self.elapsed()
            self._write()

    def elapsed(self) -> float:
        """Seconds so far, stops left out, of a stage that is not finished."""
        return self.seconds + time.time() - self._began

    def _write(self) -> None:
        mark = {
            "hash": self.hash,
            "made_from": self._made_from,
            "began": self._began,
            "done": self.done,
            "seconds": round(self.seconds, 3),
        }
        write_json(self.folder / _MARK, mark)


def _by_value(value: Any) -> Any:
    """Plain data in which equal numbers are the same text: 2.0 as 2."""
    if isinstance(value, dict):
        return {key: _by_value(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_by_value(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _times_written(folder: pathlib.Path) -> list[float]:
    """When each of a stage's files but its mark was written."""
    times = []
    for path in listed(folder, "**/*"):
        if path.name != _MARK and path.is_file():
            with contextlib.suppress(FileNotFoundError):  # another process is at work
                times.append(path.stat().st_mtime)
    return times


def _difference(old: dict[str, Any], new: Any, prefix: str = "") -> str:
    """The first setting that differs, and both its values; "" where none does.

    Args:
      old: Of a mark. A field that it lacks came with a later version and counts as its default.
      new: A dict or a dataclass.
      prefix: Of the names.
    """
    old, values = {**_defaults(new), **old}, plain(new)
    for key in [*values, *(k for k in old if k not in values)]:
        a, b = plain(old.get(key)), values.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            section = new[key] if isinstance(new, dict) else getattr(new, key)
            inner = _difference(a, section, f"{prefix}{key}.")
            if inner:
                return inner
        elif a != b:
            return f"{prefix}{key}: {a}, now {b}"
    return ""


def _defaults(section: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields; none of anything else."""
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
