"""Compares the sums of a latency table with whole networks as measured."""

import csv
import io
import itertools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, disk, sheet


class Audited(NamedTuple):
    """A subnet: the figures by the tables, and as measured."""

    subnet: str  # text form
    table_ms: float
    latency_ms: float  # of the whole network
    table_bytes: int  # logical
    size_bytes: int  # logical, added up over the layers that the exported network really has
    stored_bytes: int  # by the table, for a file of this format
    file_bytes: int


class Conditions(NamedTuple):
    """What subnets were audited with; the last columns of the file, the same in all lines."""

    runtime: str
    runtime_version: str
    device: str
    threads: int
    height: int  # of the image
    width: int
    seed: int  # of the subnets' choice
    table: str  # its path; its content is compared by each subnet's `table_ms`


COLUMNS = (*Audited._fields, *Conditions._fields)


def write(path: pathlib.Path, subnets: Iterable[Audited], conditions: Conditions) -> None:
    """Writes a CSV file, a line for each subnet."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows((*subnet, *conditions) for subnet in subnets)
    artefacts.write(path, text.getvalue())


def read(path: pathlib.Path, conditions: Conditions) -> list[Audited]:
    """The subnets that were audited before; none if there is no file.

    Raises:
      InputError: It was audited under other conditions, or the file is damaged.
    """
    try:
        content = disk.read(path)
    except disk.Missing:
        return []
    kinds = tuple(Audited.__annotations__.values())
    try:
        (_, header), *lines = sheet.parse(content) or [(1, [])]
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns must be {','.join(COLUMNS)}")
        cells = [dict(zip(COLUMNS, line, strict=True)) for _, line in lines]
        subnets = [
            Audited(*(kind(line[k]) for kind, k in zip(kinds, Audited._fields, strict=True)))
            for line in cells
        ]
        odd = [one.subnet for one in subnets if not all(0 < x < math.inf for x in one[1:])]
        if odd:
            raise ValueError(f"{odd[0]} has an invalid figure")
    except ValueError as error:
        raise InputError(f"{path}: cannot be resumed ({error}); delete it") from None
    for line, (name, now) in itertools.product(cells, conditions._asdict().items()):
        if name != "table" and line[name] != str(now):
            raise InputError(
                f"{path}: was made with {name} {line[name]!r}, now it is {str(now)!r}; "
                "take another --workdir, or delete it"
            )
    return subnets


def pairs(subnets: Sequence[Audited]) -> tuple[list[tuple[float, float]], ...]:
    """Latencies (ms) and sizes (kB) to be drawn, each by the table and as measured."""
    latencies = [(one.table_ms, one.latency_ms) for one in subnets]
    return latencies, [(one.stored_bytes / 1e3, one.file_bytes / 1e3) for one in subnets]


def verdict(subnets: Sequence[Audited]) -> dict[str, Any]:
    """How well the tables rank subnets (Kendall's tau) and predict their figures (percent).

    `size` compares the size table's column for this format with the file; `size_exact` says
    whether the logical bytes equal those of the exported layers, to the byte.
    """
    columns = {
        name: np.array([getattr(audited, name) for audited in subnets], np.float64)
        for name in Audited._fields[1:]
    }
    pairs = {"latency": ("table_ms", "latency_ms"), "size": ("stored_bytes", "file_bytes")}
    found: dict[str, Any] = {"subnets": len(subnets)}
    for name, (table, truth) in pairs.items():
        predicted, measured = columns[table], columns[truth]
        error = predicted / measured - 1
        found |= {
            f"{name}_tau": round(metrics.kendall_tau(predicted, measured), 4),
            f"{name}_mape": round(100 * float(np.abs(error).mean()), 3),
            f"{name}_bias": round(100 * float(error.mean()), 3),
        }
    exact = np.array_equal(columns["table_bytes"], columns["size_bytes"])
    return {**found, "size_exact": exact}
