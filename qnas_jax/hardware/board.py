"""Measuring on a board: which files to run there, and what the runtimes' tools print.

`launch/tools/profile_latency.py --export_only DIR` writes one file for each subject, and
`manifest.csv`, which says what each is. `launch/jobs/profile_board.sh` runs every file on the
board and keeps what the tool printed next to it, as FILE.log. `rows` makes lines of a table from
both.
"""

import csv
import io
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from qnas_jax.errors import InputError
from qnas_jax.hardware.measured import Row, Subject
from qnas_jax.run import artefacts

MANIFEST = "manifest.csv"
LEAST_MS = 1e-6  # of a table's line
CALLS = ("call1", "call2")  # one tiny convolution, and two
CALL_SHAPE = (4, 4, 8)


class Log(NamedTuple):
    """What a tool tells; what it does not is None."""

    latency_ms: float
    std_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    count: int

    def less(self, call_ms: float) -> "Log":
        """The figures without what a call takes."""
        latency_ms, std_ms, *parts, count = self
        p50_ms, p90_ms, p99_ms = (part and max(part - call_ms, 0.0) for part in parts)
        # A figure of next to nothing is still one.
        return Log(max(latency_ms - call_ms, LEAST_MS), std_ms, p50_ms, p90_ms, p99_ms, count)


def call_latency(calls: Mapping[str, float]) -> float:
    """What a call of the runtime takes: two convolutions called apart, less both in one call."""
    once, twice = (calls[name] for name in CALLS)
    return max(2 * once - twice, 0.0)


def of_call(name: str) -> Subject:
    """How the manifest names one of `CALLS`."""
    return Subject(name, "", *CALL_SHAPE, CALL_SHAPE[-1], 1, 1, 8, 8)


def write_manifest(folder: pathlib.Path, files: Mapping[str, Subject]) -> None:
    """Writes what each file is; its names come first in their lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", *Subject._fields))
    writer.writerows((name, *subject) for name, subject in files.items())
    artefacts.write(folder / MANIFEST, text.getvalue())


def read_manifest(folder: pathlib.Path) -> dict[str, Subject]:
    """What each file is.

    Raises:
      InputError: There is no manifest, or it is none.
    """
    path = folder / MANIFEST
    try:
        with path.open(newline="") as file:
            _, *lines = csv.reader(file)
        return {
            name: Subject(place, ops, *map(int, numbers)) for name, place, ops, *numbers in lines
        }
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is no manifest ({error}); "
            "launch/tools/profile_latency.py --export_only writes one"
        ) from None


# "count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442", newer ones with
# " p5=... median=... p95=..." behind it; microseconds. The last such line is that of the runs
# behind the warm-up.
_LITERT = re.compile(r"count=(\d+) .*?avg=(\S+) std=(\S+)(?: p5=\S+ median=(\S+))?")
# "Runs:1000" and "P50 Latency: 0.0012 s"; the mean is in a line of its own.
_ORT_MEAN = re.compile(r"Average inference time cost(?: total)?: (\S+) ms")
_ORT_COUNT = re.compile(r"Total inference requests: (\d+)")
_ORT_PART = re.compile(r"P(50|90|99) Latency: (\S+) s")


def parse(text: str) -> Log:
    """Reads what `benchmark_model` or `onnxruntime_perf_test` printed.

    Raises:
      ValueError: It is neither, or the tool has failed.
    """
    found = _LITERT.findall(text)
    if found:
        count, mean, std, median = found[-1]
        p50_ms = float(median) / 1e3 if median else None
        return Log(float(mean) / 1e3, float(std) / 1e3, p50_ms, None, None, int(count))
    mean, count = _ORT_MEAN.search(text), _ORT_COUNT.search(text)
    if not (mean and count):
        raise ValueError("no line with the mean of the runs")
    parts = {part: 1e3 * float(seconds) for part, seconds in _ORT_PART.findall(text)}
    p50_ms, p90_ms, p99_ms = (parts.get(part) for part in ("50", "90", "99"))
    return Log(float(mean[1]), None, p50_ms, p90_ms, p99_ms, int(count[1]))


def rows(folder: pathlib.Path, runtime: str, version: str, device: str, threads: int) -> list[Row]:
    """Lines of a table, of all files that were run, without what a call takes.

    Args:
      folder: Files, logs and manifest.
      runtime: What ran them.
      version: Its version.
      device: The board.
      threads: How many the runtime had.

    Raises:
      InputError: A log has no figures, or those of the calls are missing.
    """
    logs = {}
    for name, subject in read_manifest(folder).items():
        path = folder / f"{name}.log"
        if path.exists():
            try:
                logs[subject] = parse(path.read_text(errors="replace"))
            except ValueError as error:
                raise InputError(f"{path}: {error}; delete it to run the file again") from None
    calls = {name: logs.pop(of_call(name), None) for name in CALLS}
    if not all(calls.values()):
        raise InputError(f"{folder}: {' and '.join(CALLS)} were not run")
    call_ms = call_latency({name: log.latency_ms for name, log in calls.items() if log})
    conditions = (runtime, version, device, threads)
    return [_row(subject, log.less(call_ms), conditions) for subject, log in logs.items()]


def _row(subject: Subject, log: Log, conditions: tuple[str, str, str, int]) -> Row:
    latency_ms, std_ms, p50_ms, p90_ms, p99_ms, count = log
    return Row(subject, latency_ms, std_ms, p50_ms, p90_ms, p99_ms, count, None, *conditions)
