"""What stages leave behind: whole or not at all, and marked with what they were made from.

A folder's `made_from.json` holds the settings and the hashes of everything upstream. A
stage whose mark matches is skipped if it is finished, resumed if not; a folder that was
made from something else is refused and stays as it is.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from qnas_jax.errors import InputError
from qnas_jax.run.listing import listed

_MARK = "made_from.json"


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
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


@contextlib.contextmanager
def writing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder that appears under its name only when it is complete."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    os.replace(part, path)


def write(path: pathlib.Path, content: bytes | str) -> None:
    """A whole file at once, text in UTF-8."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Plain data or dataclasses as JSON."""
    write(path, json.dumps(plain(value), indent=2) + "\n")


def read_json(path: pathlib.Path, *names: str) -> Any:
    """What a JSON file of a run holds; with names, an object that has at least these.

    Raises:
      InputError: It is missing, cut short, or something else.
    """
    try:
        found = json.loads(path.read_bytes())
        for name in names:
            if not isinstance(found, dict) or name not in found:
                raise ValueError(f"it has no {name}")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return found


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
    """What is said of a run's file that cannot be read.

    A finished stage whose mark is gone goes on from all else that it holds (checkpoints, say),
    and writes the file again.
    """
    missing = isinstance(error, FileNotFoundError)
    state = "is missing" if missing else f"cannot be read ({error})"
    what = [] if missing else ["it"]
    what += [f"{_MARK} beside it"] if is_finished(path.parent) else []
    delete = f"delete {' and '.join(what)}, then " if what else ""
    return InputError(f"{path}: {state}; {delete}run launch/main.py again")


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this process alone.

    Raises:
      InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is at work in it") from None
        yield


def is_begun(folder: pathlib.Path) -> bool:
    """Whether a folder holds a stage."""
    return (folder / _MARK).exists()


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a folder holds a stage that is finished, whatever it was made from."""
    try:
        return _read_mark(folder)["done"]
    except (OSError, InputError):
        return False


def check_made_from(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Refuses a stage that was made from other settings than these, which are some of its own.

    Raises:
      InputError: It was, or is not begun.
    """
    if not is_begun(folder):
        raise unreadable(folder / _MARK, FileNotFoundError())
    found, given = _read_mark(folder)["made_from"], plain(settings)
    found = {name: found.get(name) for name in given}
    if found != given:
        changes = _difference(found, given)
        raise InputError(
            f"{folder} was made from other settings ({changes}); give the --config of its run"
        )


def _read_mark(folder: pathlib.Path) -> dict[str, Any]:
    """What a stage's mark holds; raises InputError for one that is damaged."""
    try:
        found = json.loads((folder / _MARK).read_bytes())
        return {name: found[name] for name in ("hash", "made_from", "done", "seconds", "began")}
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
        """Finds out how far the stage is.

        Args:
          folder: Made if it is missing.
          made_from: Settings, and hashes of the stages that it reads.

        Raises:
          InputError: The folder was made from something else.
        """
        self.folder = folder
        self.hash = digest(made_from)
        self.done, self.seconds = False, 0.0
        self._mark = {"hash": self.hash, "made_from": plain(made_from), "began": time.time()}
        try:
            found = _read_mark(folder)
        except FileNotFoundError:
            self._write()
            return
        except NotADirectoryError:
            raise InputError(f"{folder}: is a file, must be a folder") from None
        self.done, self.seconds = found["done"], found["seconds"]
        files = [p for p in listed(folder, "**/*") if p.is_file() and p.name != _MARK]
        if not files:  # nothing came of it: it may be made from anything
            self.done, self.seconds = False, 0.0
            self._write()
        elif found["hash"] != self.hash:
            changes = _difference(found["made_from"], self._mark["made_from"])
            raise InputError(
                f"{folder} was made from other settings ({changes}); "
                f"take another --workdir, or delete {folder}"
            )
        elif not self.done:  # what the run that was stopped has taken, up to its last file
            latest = max(p.stat().st_mtime for p in files)
            self.seconds += max(latest - found["began"], 0.0)
            self._write()

    def finish(self) -> None:
        """Marks the stage as finished; does nothing if it is."""
        if not self.done:
            self.done = True
            self.seconds = self.elapsed()
            self._write()

    def elapsed(self) -> float:
        """Seconds so far, stops left out, of a stage that is not finished."""
        return self.seconds + time.time() - self._mark["began"]

    def _write(self) -> None:
        mark = {**self._mark, "done": self.done, "seconds": round(self.seconds, 3)}
        write_json(self.folder / _MARK, mark)


def _difference(old: dict, new: dict, prefix: str = "") -> str:
    """The first setting that differs, and both its values."""
    for key in [*new, *(k for k in old if k not in new)]:
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return _difference(a, b, f"{prefix}{key}.")
        return f"{prefix}{key}: {a}, now {b}"
    return "an older version"
