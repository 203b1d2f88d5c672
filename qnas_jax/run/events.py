"""TensorBoard's event files, written at once and without steps that were lost.

A file holds records: the length of an event, a checksum of the length, the event, a checksum of
the event. TensorBoard's own way to hide what came after a restart (a `SessionLog`) hides the
later steps of all tags in a folder, also those of the other stages.
"""

import io
import itertools
import pathlib
import platform
import struct
import time
from collections.abc import Iterator
from typing import Any

from qnas_jax.run import artefacts, disk

_MOST_LETTERS = 100  # of a stage in a file's name, which file systems limit to 255 in all
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


class Events:
    """The event file of one stage; each of its events is handed to the system at once."""

    def __init__(self, folder: pathlib.Path, stage: str):
        """Begins another file in the folder; `stage` is the prefix of each name."""
        self._stage = stage
        for second in itertools.count(int(time.time())):  # TensorBoard reads files by their names
            name = f"events.out.tfevents.{second}.{platform.node()}.{_short(stage)}"
            self._path = folder / name
            if not self._path.exists():
                break
        self._file = self._path.open("xb")
        self._append(file_version="brain.Event:2")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the values after `step` steps."""
        from tensorboardX.summary import scalar  # takes seconds to import

        for name, value in values.items():
            self._append(step=step, summary=scalar(f"{self._stage}/{name}", value))

    def sync(self) -> None:
        """Writes the events to the disk."""
        with disk.naming(self._path):
            disk.sync(self._file)

    def close(self) -> None:
        """Closes the file."""
        with disk.naming(self._path):
            self._file.close()

    def _append(self, **what: Any) -> None:
        event = _event_type()(wall_time=time.time(), **what).SerializeToString()
        with disk.naming(self._path):
            self._file.write(_record(event))
            self._file.flush()


def forget(folder: pathlib.Path, stage: str, step: int) -> None:
    """Removes a stage's events after `step` steps, and truncated events, from all files."""
    kind = _event_type()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, kept = disk.read(path), io.BytesIO()
        for data in _split(content):
            event = kind.FromString(data)
            tags = [value.tag for value in event.summary.value]
            lost = event.step > step and tags and all(t.startswith(f"{stage}/") for t in tags)
            if not lost:
                kept.write(_record(data))
        if kept.getvalue() != content:
            artefacts.write(path, kept.getvalue())


def _short(stage: str) -> str:
    name = stage.replace("/", ".")
    return name if len(name) <= _MOST_LETTERS else f"{name[:80]}-{artefacts.digest(name)}"


def _event_type() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]  # made at import


def _record(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    length = _LENGTH.pack(len(data))
    return b"".join(
        (length, _CHECKSUM.pack(masked_crc32c(length)), data, _CHECKSUM.pack(masked_crc32c(data)))
    )


def _split(content: bytes) -> Iterator[bytes]:
    """The events of a file that are whole, up to the first that is not."""
    place, around = 0, _LENGTH.size + _CHECKSUM.size
    while place + around <= len(content):
        (length,) = _LENGTH.unpack_from(content, place)
        data = content[place + around : place + around + length]
        record = _record(data)
        if content[place : place + len(record)] != record:
            return
        yield data
        place += len(record)
