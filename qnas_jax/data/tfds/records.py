"""The records of a prepared split as bytes, whatever the format of its files."""

import importlib
import pathlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from qnas_jax.data.batching import prefetch
from qnas_jax.data.tfds.frames import Frames
from qnas_jax.errors import InputError
from qnas_jax.run import disk

_THREADS = 4  # that look into files


@runtime_checkable  # for the checks of annotated types in the tests
class Records(Protocol):
    """Serialized examples by their number; read by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


class Shards(NamedTuple):
    """The files of a split.

    Attributes:
      name: The split's name in the data set.
      format: "tfrecord", "array_record" or "parquet".
      files: In their order.
      counts: How many records each holds.
    """

    name: str
    format: str
    files: list[pathlib.Path]
    counts: list[int]


def shards(info: Any, split: str) -> Shards:
    """The files of a split, which must be there.

    Args:
      info: The `tfds.core.DatasetInfo` of a prepared data set.
      split: One of its splits.

    Raises:
      InputError: A file is missing.
    """
    about = info.splits[split]
    files = [pathlib.Path(file) for file in about.filepaths]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: missing, a file of {info.name}'s split {split}")
    return Shards(split, info.file_format.value, files, list(about.shard_lengths))


def opened(builder: Any, found: Shards) -> Records:
    """Random access to the records of a split.

    Raises:
      InputError: The format is not known, its package is missing, or a file is damaged.
    """
    if found.format == "tfrecord":
        return Frames(found.files, found.counts)
    if found.format not in ("array_record", "parquet"):
        raise InputError(
            f"{found.files[0]}: its format is {found.format}; prepare the data set as "
            "array_record, tfrecord or parquet"
        )
    if found.format == "array_record":
        array_record()
    try:
        return builder.as_data_source(found.name).data_source
    except (OSError, RuntimeError, ValueError) as error:  # as Parquet's files are read at once
        _check_system(found.files[0].parent, error)
        raise InputError(f"{found.files[0].parent}: cannot be read ({_line(error)})") from None


def check(records: Records, found: Shards) -> None:
    """Makes sure that all files hold the records that they must; reads no record.

    Raises:
      InputError: One does not, as it was cut for instance; the message names it.
    """

    def look(place: int) -> None:
        if isinstance(records, Frames):
            records.index(place)
        elif found.format == "array_record":
            _check_array_record(found.files[place], found.counts[place])

    for _ in prefetch(look, 0, len(found.files), _THREADS):
        pass
    if len(records) != sum(found.counts):
        raise InputError(
            f"{found.files[0].parent}: split {found.name} holds {len(records)} records, must "
            f"hold {sum(found.counts)}; prepare it again"
        )


def _check_array_record(path: pathlib.Path, count: int) -> None:
    reader, held = None, -1
    try:
        reader = array_record().ArrayRecordReader(str(path))
        held = reader.num_records()
    except RuntimeError as error:  # the file is too short to be one, or cannot be opened
        _check_system(path, error)
    if held != count:
        raise InputError(
            f"{path}: does not hold its {count} records, so it was cut or is damaged; "
            "copy or prepare it again"
        )
    if reader:  # one of a damaged file fails to close
        reader.close()


def _check_system(path: pathlib.Path, error: Exception) -> None:
    """Refuses what the system is at fault for; see `disk`."""
    fault = disk.fault(error)
    if fault:
        raise disk.refusal(path, fault) from None


def array_record() -> Any:
    """The package's module, which there is not for all platforms.

    Raises:
      InputError: It is not installed.
    """
    try:
        module: Any = importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        raise InputError(
            "array_record: there is no package of this name for this platform; "
            "prepare the data set with file_format='tfrecord'"
        ) from None
    return module


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
