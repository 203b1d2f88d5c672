"""Measuring on a board: which files to run there, and what the runtimes' tools print.

`qnas profile_latency --export_only DIR` writes one file for each probe, and
`manifest.csv`, which says what each is. `launch/jobs/profile_board.sh` runs every file on the
board and keeps what the tool printed next to it, as FILE.log. `rows` makes lines of a table from
both.
"""

import csv
import io
import math
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from qnas_jax.errors import InputError
from qnas_jax.hardware.measured import ProbeKey, Row
from qnas_jax.run import artefacts, disk, sheet

MANIFEST = "manifest.csv"
LEAST_MS = 1e-6  # of a table's line
CALLS = ("call1", "call2")  # one tiny convolution, and two
CALL_SHAPE = (4, 4, 8)


class Log(NamedTuple):
    """The figures that a tool prints; None for those that it does not."""

    latency_ms: float
    std_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    count: int

    def less(self, call_ms: float) -> "Log":
        """The figures without the time of a call."""
        latency_ms, std_ms, *parts, count = self
        p50_ms, p90_ms, p99_ms = (part and max(part - call_ms, 0.0) for part in parts)
        # A table needs latencies above zero.
        return Log(max(latency_ms - call_ms, LEAST_MS), std_ms, p50_ms, p90_ms, p99_ms, count)


def call_latency(calls: Mapping[str, float]) -> float:
    """The time of a call of the runtime: two convolutions in two calls, minus both in one."""
    once, twice = (calls[name] for name in CALLS)
    return max(2 * once - twice, 0.0)


def of_call(name: str) -> ProbeKey:
    """How the manifest names one of `CALLS`."""
    return ProbeKey(name, "", *CALL_SHAPE, CALL_SHAPE[-1], 1, 1, 8, 8)


def write_manifest(folder: pathlib.Path, files: Mapping[str, ProbeKey]) -> None:
    """Writes what each file is; its names come first in their lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", *ProbeKey._fields))
    writer.writerows((name, *probe) for name, probe in files.items())
    artefacts.write(folder / MANIFEST, text.getvalue())


def read_manifest(folder: pathlib.Path) -> dict[str, ProbeKey]:
    """What each file is.

    Raises:
      InputError: The manifest is missing or damaged.
    """
    path = folder / MANIFEST
    way_out = "qnas profile_latency --export_only writes one"
    try:
        content = disk.read(path)
    except disk.Missing as error:
        raise InputError(f"{error}; {way_out}") from None
    try:
        _, *lines = sheet.parse(content)
        return {
            name: ProbeKey(place, ops, *map(int, numbers))
            for _, (name, place, ops, *numbers) in lines
        }
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is no manifest ({error}); {way_out}") from None


# `benchmark_model` prints one such line for its warm-up and one for its runs; microseconds:
#   count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442
#   count=50 curr=4(all same)
#   count=1 curr=4
#   count=0
# Newer ones end in " p5=... median=... p95=..."; older ones have curr first, or not at all. A
# profile of operators has such lines as well, after "Timings (microseconds): ": nothing but a
# logger's mark may come before.
_LITERT = re.compile(r"^(?:.*(?:INFO: |\] ))?[ \t]*((?:curr=\S+ )?count=\d+\b.*)", re.MULTILINE)
_FIELD = re.compile(r"(\w+)=([^\s(]+)")
# The percentiles are there with -s; older ones say "iterations", "is" and "sec".
_ORT_MEAN = re.compile(r"Average (?:inference )?time cost(?: total)?: ?(\S+) ms")
_ORT_COUNT = re.compile(r"Total (?:inference requests|iterations): ?(\d+)")
_ORT_PART = re.compile(r"P(50|90|99) Latency(?::| is) (\S+?) ?s(?:ec)?\b")


def parse(text: str) -> Log:
    """Reads what `benchmark_model` or `onnxruntime_perf_test` printed.

    Raises:
      ValueError: It is neither, or the tool has failed, or the runs are missing.
    """
    if "Benchmarking failed" in text:
        raise ValueError("the tool says that it failed")
    lines = _LITERT.findall(text)
    means, counts = _ORT_MEAN.findall(text), _ORT_COUNT.findall(text)
    if len(lines) > 2 or len(means) > 1:
        raise ValueError("has the figures of several measurements")
    if len(lines) == 2:
        return _litert(lines[1], cut_off=text.endswith(lines[1]))
    if not (means and counts):
        warm_up = " (that of the warm-up alone)" if lines else ""
        raise ValueError(f"no line with the mean of the runs{warm_up}")
    parts = {part: _figure(seconds, 1e-3) for part, seconds in _ORT_PART.findall(text)}
    p50_ms, p90_ms, p99_ms = (parts.get(part) for part in ("50", "90", "99"))
    return Log(_mean(means[0], 1.0), None, p50_ms, p90_ms, p99_ms, int(counts[0]))


def _litert(line: str, cut_off: bool) -> Log:
    same, fields = "(all same)" in line, dict(_FIELD.findall(line))
    if cut_off and not line.endswith(")"):
        fields.popitem()  # may have lost digits
    mean = "curr" if same or fields.get("count") == "1" else "avg"
    if fields.get("count") == "0":
        raise ValueError("no line with the mean of the runs (count=0)")
    if mean not in fields:
        raise ValueError(f"no line with the mean of the runs (cut off after {line!r})")
    std_ms = 0.0 if same else _figure(fields.get("std", ""), 1e3)
    p50_ms = _figure(fields.get("median", ""), 1e3)
    return Log(_mean(fields[mean], 1e3), std_ms, p50_ms, None, None, int(fields["count"]))


def _figure(text: str, per_ms: float) -> float | None:
    """A figure; None if it is missing, nan, or a variance that was rounded below 0."""
    value = float(text or "nan")
    return value / per_ms if 0 <= value < math.inf else None


def _mean(text: str, per_ms: float) -> float:
    value = _figure(text, per_ms)
    if value is None:
        raise ValueError(f"no line with the mean of the runs (it is {text})")
    return value


def rows(
    folder: pathlib.Path, runtime: str, version: str, device: str, threads: int
) -> tuple[list[Row], list[str]]:
    """Lines of a table for all files that were run, without the time of a call.

    Args:
      folder: Files, logs and manifest.
      runtime: What ran them.
      version: Its version.
      device: The board.
      threads: How many the runtime had.

    Returns:
      The lines, and for each log without figures a line that says what is wrong with it.

    Raises:
      InputError: The figures of the calls, which all others need, are missing.
    """
    logs, refused = {}, {}
    for name, probe in read_manifest(folder).items():
        path = folder / f"{name}.log"
        try:
            logs[probe] = parse(disk.read(path).decode(errors="replace"))
        except disk.Missing:
            continue
        except InputError as error:
            refused[probe] = str(error)
        except ValueError as error:
            refused[probe] = f"{path}: {error}; delete it to run the file again"
    calls = {name: logs.pop(of_call(name), None) for name in CALLS}
    for name, log in calls.items():
        if not log:
            missing = f"{folder}: {' and '.join(CALLS)} were not run"
            raise InputError(refused.get(of_call(name), missing))
    call_ms = call_latency({name: log.latency_ms for name, log in calls.items() if log})
    conditions = (runtime, version, device, threads)
    lines = [_row(probe, log.less(call_ms), conditions) for probe, log in logs.items()]
    return lines, list(refused.values())


def _row(probe: ProbeKey, log: Log, conditions: tuple[str, str, str, int]) -> Row:
    latency_ms, std_ms, p50_ms, p90_ms, p99_ms, count = log
    return Row(probe, latency_ms, std_ms, p50_ms, p90_ms, p99_ms, count, None, *conditions)
