"""A stage of a run: its folder, and the mark that says what it was made from.

The mark `made_from.json` holds the settings and the hashes of all earlier stages that the stage
reads. A finished stage with the same mark is skipped, an unfinished one is resumed, and a folder
that was made from something else is refused and left unchanged.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

from qnas_jax.errors import InputError
from qnas_jax.run import disk
from qnas_jax.run.artefacts import digest, plain, write_json
from qnas_jax.run.listing import listed

_MARK = "made_from.json"
NOTHING: Mapping[str, Any] = MappingProxyType({})
# What parsing a damaged file raises.
DAMAGE = (
    *(EOFError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def reading(path: pathlib.Path, of: pathlib.Path | None = None) -> Iterator[BinaryIO]:
    """Reads a whole file of a run; errors inside the `with` mean that the file is damaged.

    Args:
      path: The file.
      of: The folder that was written as a whole, if the file is in one.

    Raises:
      InputError: The file is missing, damaged, or cannot be read.
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
    """Returns the content of a JSON file of a run.

    Args:
      path: The file.
      names: Keys that it must have.

    Raises:
      InputError: The file is missing, damaged, or cannot be read.
    """
    with reading(path) as file:
        found = json.load(file)
        for name in names:
            if not isinstance(found, dict) or name not in found:
                raise ValueError(f"it has no {name}")
    return found


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
    """Returns the error for a file of a run that is missing or damaged.

    A finished stage whose mark is deleted resumes from its other files, such as checkpoints, and
    writes the missing file again.
    """
    missing = isinstance(error, disk.Missing)
    state = "is missing" if missing else f"cannot be read ({error})"
    what = [] if missing else ["it"]
    what += [f"{_MARK} next to it"] if is_finished(path.parent) else []
    delete = f"delete {' and '.join(what)}, then " if what else ""
    return InputError(f"{path}: {state}; {delete}repeat the command of the run that wrote it")


def is_begun(folder: pathlib.Path) -> bool:
    """Whether a folder has a stage's mark."""
    return (folder / _MARK).exists()


def begun_with(folder: pathlib.Path, name: str) -> Any:
    """Returns the value of a setting in a stage's mark; None if it has none.

    Raises:
      InputError: The mark is damaged or cannot be read.
    """
    found = _read_mark(folder)
    return found["made_from"].get(name) if found else None


def hash_of(folder: pathlib.Path) -> str:
    """Returns the hash in a stage's mark, "" without a mark; raises like `is_finished`."""
    found = _read_mark(folder)
    return found["hash"] if found else ""


def seconds_of(folder: pathlib.Path) -> float:
    """Returns how long a stage took, 0 without a mark; raises like `is_finished`."""
    found = _read_mark(folder)
    return found["seconds"] if found else 0.0


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a folder has a finished stage, made from any settings.

    Raises:
      InputError: Its mark is damaged or cannot be read.
    """
    found = _read_mark(folder)
    return bool(found and found["done"])


def check_made_from(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Checks that a stage was made from these settings, which may be some of its settings.

    Raises:
      InputError: It was made from others, or has no mark.
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
    """Returns the content of a stage's mark; None if there is none.

    Raises:
      InputError: The mark is damaged or cannot be read.
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
    """One stage of a run.

    Attributes:
      folder: The folder of its files.
      hash: Hash of all that it is made from; later stages put it into their marks.
      done: Whether it is finished.
      seconds: How long it took, without interruptions.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        made_from: dict[str, Any],
        older: Mapping[str, Any] = NOTHING,
    ):
        """Finds out whether the stage is finished; writes nothing.

        Args:
          folder: Its folder, which may be missing.
          made_from: Settings, and hashes of the stages that it reads. A section may be a
            dataclass: a field that the mark lacks counts as its default.
          older: Values that count for single settings which the mark lacks, because an older
            version wrote it; see `defaults`.

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
        if not (found and written):  # without files, it may be made from anything
            return
        added = {name: older[name] for name in made_from if name in older}
        changes = _difference({**added, **found["made_from"]}, made_from)
        if changes:
            raise InputError(
                f"{folder} was made from other settings ({changes}); "
                f"take another --workdir, or delete {folder}"
            )
        # The stored hash: later stages have it in their marks, and another version may have
        # computed it differently.
        self.hash, self.done, self.seconds = found["hash"], found["done"], found["seconds"]
        if not self.done:  # the time of the interrupted run, up to its last file
            self.seconds += max(max(written) - found["began"], 0.0)

    def begin(self) -> None:
        """Writes the mark of an unfinished stage; does nothing if it is finished.

        Of several processes, the first writes marks.
        """
        if not self.done:
            self._began = time.time()
            self._write()

    def finish(self) -> None:
        """Marks the stage as finished; does nothing if it is already."""
        if not self.done:
            self.done = True
            # As the mark holds them: read again, they must round to the same tenth.
            self.seconds = round(self.elapsed(), 3)
            self._write()

    def elapsed(self) -> float:
        """Returns the seconds so far of an unfinished stage, without interruptions."""
        return self.seconds + time.time() - self._began

    def _write(self) -> None:
        from qnas_jax.run import parallel  # imports JAX, which reading a run does without

        if not parallel.is_first():
            return
        mark = {
            "hash": self.hash,
            "made_from": self._made_from,
            "began": self._began,
            "done": self.done,
            "seconds": round(self.seconds, 3),
        }
        write_json(self.folder / _MARK, mark)


def _by_value(value: Any) -> Any:
    """Returns plain data in which equal numbers have the same text: 2.0 becomes 2."""
    if isinstance(value, dict):
        return {key: _by_value(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_by_value(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _times_written(folder: pathlib.Path) -> list[float]:
    """Returns when each file of a stage was written, without its mark."""
    times = []
    for path in listed(folder, "**/*"):
        if path.name != _MARK and path.is_file():
            with contextlib.suppress(FileNotFoundError):  # another process replaced it
                times.append(path.stat().st_mtime)
    return times


def _difference(old: dict[str, Any], new: Any, prefix: str = "") -> str:
    """Returns the first setting that differs and both values; "" if all are equal.

    Args:
      old: Settings of a mark. A missing field of a dataclass counts as its default, because an
        older version did not have it.
      new: Settings now, a dict or a dataclass.
      prefix: Prefix of the settings' names.
    """
    old, values = {**defaults(new), **old}, plain(new)
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


def defaults(section: Any) -> dict[str, Any]:
    """Returns the default values of a dataclass's fields; {} for anything else."""
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
