"""Measured latencies as a CSV table: from a profiler, a vendor's simulator or a board.

One line for each probe (a slice of a network at some bitwidths) that was measured, below a header
with these columns in this order:

    place              "block3/layer1" (blocks from 1, layers from 0, as in the network), a whole
                       block "block3", or one of the parts that are in no block: "stem" (from the
                       image to the first block) and "head" (after the encoder)
    path               the op of a layer, "k3e6" (kernel 3, expansion 6), those of a block,
                       "k3e6-k5e3"; empty for stem and head
    in_height, in_width, in_channels    of the input
    channels           of the output
    stride, dilation   of the place's first depthwise convolution; 1, 1 for the head
    w_bits, a_bits     bitwidths of weights and of activations, 2 to 8, or 32 for float
    latency_ms         of one image: mean of the repeats, or of those that nothing disturbed
    std_ms, p50_ms, p90_ms, p99_ms      standard deviation and percentiles; may be empty
    count              number of repeats
    energy_mj          of one image; may be empty
    runtime, runtime_version, device    in words; the same in all lines
    threads            the same in all lines

A search adds up layers and the two fixed parts, so it needs these lines; lines of whole blocks
and of float networks are for comparison. The device does not run what has no line. What
spreadsheets add to a table is read (`qnas_jax/run/sheet.py`).
"""

import csv
import dataclasses
import io
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import cells
from qnas_jax.hardware.candidates import Place
from qnas_jax.hardware.target import CandidateCost, Choices, Target, runnable
from qnas_jax.run import disk, sheet
from qnas_jax.space import COSTS, Bits, Op

FLOAT_BITS = 32  # stands for a layer that was not quantized


class ProbeKey(NamedTuple):
    """What a probe is: its place, path, shape and bitwidths; the first columns."""

    place: str
    path: str
    in_height: int
    in_width: int
    in_channels: int
    channels: int
    stride: int
    dilation: int
    w_bits: int
    a_bits: int


class Row(NamedTuple):
    """A line of the table; figures that were not measured are None."""

    probe: ProbeKey
    latency_ms: float
    std_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    count: int
    energy_mj: float | None
    runtime: str
    runtime_version: str
    device: str
    threads: int


COLUMNS = (*ProbeKey._fields, *Row._fields[1:])
_PLACE = re.compile(r"stem|head|block[1-9]\d*(/layer\d+)?")
_PATH = re.compile(r"(k\d+e\d+(-k\d+e\d+)*)?")
_SHARED = ("runtime", "runtime_version", "device", "threads")

_NUMBER, _ANY = (cells.whole, "a whole number from 1"), (cells.text(r".*"), "a text")
_BITS = cells.one_of((*range(2, 9), FLOAT_BITS))
_MAYBE = (cells.from_zero, "a number from 0, or nothing")
# How the cells of each column are read, and what is allowed there.
_CELLS = {
    **dict.fromkeys(COLUMNS, _NUMBER),
    "place": (cells.text(_PLACE), "stem, head, block3/layer1 or block3"),
    "path": (cells.text(_PATH), "k3e6 or k3e6-k5e3, or nothing for stem and head"),
    **dict.fromkeys(("w_bits", "a_bits"), (_BITS, f"2 to 8, or {FLOAT_BITS} for float")),
    "latency_ms": (cells.above_zero, "a number above 0; what was not measured has no line"),
    **dict.fromkeys(("std_ms", "p50_ms", "p90_ms", "p99_ms", "energy_mj"), _MAYBE),
    **dict.fromkeys(("runtime", "runtime_version", "device"), _ANY),
}


def read(path: pathlib.Path) -> list[Row]:
    """Reads and checks a table.

    Raises:
      InputError: It is missing or breaks the schema; the message names line and column.
    """
    rows, seen = [], {}
    for line, values in _below_header(path, disk.read(path)):
        row = _row(f"{path}, line {line}", values)
        _check_line(path, line, row, rows, seen)
        rows.append(row)
    return rows


def _below_header(path: pathlib.Path, content: bytes) -> sheet.Lines:
    try:
        lines = sheet.parse(content)
    except ValueError as error:
        raise InputError(f"{path}, {error}") from None
    line, names = lines[0] if lines else (1, [])
    _check_header(path, line, names)
    return lines[1:]


def _check_header(path: pathlib.Path, line: int, names: Sequence[str]) -> None:
    for wanted, found in itertools.zip_longest(COLUMNS, names):
        if wanted != found:
            raise InputError(
                f"{path}, line {line}: column {found!r} where {wanted!r} must be; "
                f"the columns are {','.join(COLUMNS)}"
            )


def _row(where: str, line: Sequence[str]) -> Row:
    if len(line) != len(COLUMNS):
        hint = "a line that was cut off can be deleted"
        if len(line) > len(COLUMNS):
            hint = "quote texts that hold a comma, and write numbers as 1234.5"
        raise InputError(f"{where}: {len(line)} cells, must be {len(COLUMNS)}; {hint}")
    values: list[Any] = []
    for name, cell in zip(COLUMNS, line, strict=True):
        parse, allowed = _CELLS[name]
        try:
            values.append(parse(cell))
        except ValueError:
            hint = "; write numbers as 1234.5" if re.fullmatch(r"[\d.]*,\d+", cell) else ""
            raise InputError(f"{where}, column {name}: {cell!r}, must be {allowed}{hint}") from None
    split = len(ProbeKey._fields)
    row = Row(ProbeKey(*values[:split]), *values[split:])
    place, path = row.probe[:2]
    if bool(path) != place.startswith("block") or ("/" in place and "-" in path):
        allowed = "one op for a layer, those of its layers for a block, nothing for stem and head"
        raise InputError(f"{where}, column path: {path!r} for {place}, must be {allowed}")
    return row


def _check_line(path, line: int, row: Row, rows: Sequence[Row], seen: dict[ProbeKey, int]) -> None:
    """Refuses a probe that comes twice, and measurements under other conditions."""
    first = seen.setdefault(row.probe, line)
    if first != line:
        what = " ".join(row.probe[:2])
        raise InputError(f"{path}, line {line}: {what} stands in line {first} too; delete one")
    for name in _SHARED:
        if rows and getattr(row, name) != getattr(rows[0], name):
            raise InputError(
                f"{path}, line {line}, column {name}: {getattr(row, name)!r}, must be "
                f"{getattr(rows[0], name)!r} as in line {min(seen.values())}; take a file for each"
            )


def check_conditions(
    path: pathlib.Path, rows: Sequence[Row], conditions: tuple[str, str, str, int]
) -> None:
    """Refuses to add to a table that was measured under other conditions.

    Args:
      path: The table.
      rows: Its lines, if there are any.
      conditions: Runtime, its version, device and threads, as they would be now.

    Raises:
      InputError: The table was measured under others.
    """
    for name, now in zip(_SHARED, conditions, strict=True):
        if rows and getattr(rows[0], name) != now:
            raise InputError(
                f"{path}: was measured with {name} {getattr(rows[0], name)!r}, now it is {now!r}; "
                "take another table"
            )


def append(path: pathlib.Path, row: Row) -> None:
    """Adds a line, on the disk when this returns; begins the table if there is none.

    What was measured before an interruption is `{row.probe for row in read(path)}`.

    Raises:
      InputError: The file is no such table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        disk.naming(path),
        path.open("a+", newline="", encoding="utf-8", errors="replace") as file,
    ):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        file.seek(0)
        lines = file.read()
        if lines:
            header = lines.lstrip("\ufeff\r\n").partition("\n")[0]
            _below_header(path, header.encode())
            text.write("\n" * (not lines.endswith("\n")))  # the last one was cut off
        else:
            writer.writerow(COLUMNS)
        writer.writerow((*row.probe, *row[1:]))
        file.write(text.getvalue())
        file.flush()
        disk.sync(file)


def probe_key(place: Place, op: Op, w_bits: int, a_bits: int) -> ProbeKey:
    """An op in a place at bitwidths, as the table names it."""
    return ProbeKey(str(place), str(op), *place[2:], w_bits, a_bits)


def missing(
    rows: Sequence[Row], where: Sequence[Place], ops: Sequence[Op], bits: Sequence[Bits]
) -> list[ProbeKey]:
    """The layers that a search needs and the table lacks; fixed parts are not looked for."""
    found = {row.probe for row in rows}
    wanted = itertools.product(where, ops, bits)
    return [p for place, op, pair in wanted if (p := probe_key(place, op, *pair)) not in found]


def with_table(target: Target, path: pathlib.Path, where: Sequence[Place]) -> Target:
    """The target with costs from a table of measurements; it runs only what was measured.

    Args:
      target: What else is known of the device; measured costs replace those of its model.
      path: The table.
      where: The places of the search space.

    Raises:
      InputError: The table breaks its schema, or has no line for one of the places.
    """
    rows = [row for row in read(path) if row.probe.w_bits != FLOAT_BITS]
    needed = {str(place) for place in where}
    layers = [row.probe for row in rows if row.probe.place in needed]
    _check_places(path, layers, where)
    ops = [tuple(map(int, re.findall(r"\d+", layer.path))) for layer in layers]
    costs = {}
    for name in COSTS:
        values = {row.probe: getattr(row, name, None) for row in rows}
        known = {probe: value for probe, value in values.items() if value is not None}
        if len(known) == len(values):
            costs[name] = _looked_up(known)
    seen = Choices(
        tuple(sorted({kernel for kernel, _ in ops})),
        tuple(sorted({expansion for _, expansion in ops})),
        tuple(sorted({(layer.w_bits, layer.a_bits) for layer in layers})),
    )
    return dataclasses.replace(
        target,
        name=f"{target.name} with {path}",
        **runnable(target, seen)._asdict(),
        costs={**target.costs, **costs},
    )


def _check_places(path: pathlib.Path, layers: Sequence[ProbeKey], where: Sequence[Place]) -> None:
    shapes: dict[str, set[tuple]] = {}
    for layer in layers:
        shapes.setdefault(layer.place, set()).add(layer[2:8])
    for place in where:
        if str(place) not in shapes:
            raise InputError(f"{path}: nothing was measured for {place}")
        if place[2:] not in shapes[str(place)]:
            names = "(height, width, input channels, channels, stride, dilation)"
            found = min(shapes[str(place)])
            raise InputError(
                f"{path}: {place} was measured as {found}, must be {place[2:]} {names}; "
                "hardware.image_size sets the image size"
            )


def _looked_up(by_probe: Mapping[ProbeKey, float]) -> CandidateCost:
    known: dict[tuple, float] = {}
    for probe, value in by_probe.items():
        place, path, *shape, w_bits, a_bits = probe
        if not path:  # the stem and the head are known by the size of their input
            shape = shape[:2]
        known.setdefault((place, path, *shape, w_bits, a_bits), value)

    def cost(candidate, w_bits, a_bits):
        path = "" if candidate.op is None else str(candidate.op)
        key = (candidate.place, path, *candidate.shape)
        pairs = zip(w_bits.tolist(), a_bits.tolist(), strict=True)
        return np.array([known.get((*key, *pair), np.nan) for pair in pairs])

    return cost
