"""Measured costs of single layers as a CSV table, for policies with bitwidths of their own.

One line for each layer and pair of bitwidths, below the header

    layer,w_bits,a_bits,latency_ms,energy_mj

where a layer is a convolution by its name in the network ("encoder/block1/layer0/expand"), `a_bits`
are the bits of what it reads, and a cost that was not measured is an empty cell or no column. What
spreadsheets add to a table is read (`qnas_jax/run/sheet.py`).
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import cells
from qnas_jax.run import disk, sheet
from qnas_jax.space import Bits

KEYS = ("layer", "w_bits", "a_bits")
MEASURED = ("latency_ms", "energy_mj")


def read(path: pathlib.Path) -> dict[str, dict[tuple[str, int, int], float]]:
    """Reads a table: the value of each cost by (layer, w_bits, a_bits).

    Raises:
      InputError: It is missing or breaks the schema; the message names line and column.
    """
    content = disk.read(path)
    try:
        lines = sheet.parse(content)
    except ValueError as error:
        raise InputError(f"{path}, {error}") from None
    header = lines[0][1] if lines else []
    known = tuple(name for name in MEASURED if name in header)
    if not known or tuple(header) != (*KEYS, *known):
        raise InputError(
            f"{path}, line 1: columns {','.join(header)!r}, must be {','.join(KEYS)} and then "
            f"{' or '.join(MEASURED)} or both"
        )
    found: dict[str, dict[tuple[str, int, int], float]] = {name: {} for name in known}
    for number, row in lines[1:]:
        where = f"{path}, line {number}"
        if len(row) > len(header) or not row[0]:
            rule = f"must be {len(header)} with a layer first; write numbers as 1234.5"
            raise InputError(f"{where}: {len(row)} cells, {rule}")
        row = row + [""] * (len(header) - len(row))
        key = row[0], _bits(where, "w_bits", row[1]), _bits(where, "a_bits", row[2])
        for name, cell in zip(known, row[3:], strict=True):
            if key in found[name]:
                raise InputError(f"{where}: {' '.join(map(str, key))} stands twice; delete one")
            try:
                value = cells.from_zero(cell)
            except ValueError:
                raise InputError(
                    f"{where}, column {name}: {cell!r}, must be a number from 0, or nothing"
                ) from None
            if value is not None:
                found[name][key] = value
    return found


def _bits(where: str, name: str, cell: str) -> int:
    try:
        return cells.one_of(range(2, 9))(cell)
    except ValueError:
        raise InputError(f"{where}, column {name}: {cell!r}, must be 2 to 8") from None


def costs(path: pathlib.Path, name: str, layers: Sequence[str], bits: Sequence[Bits]) -> np.ndarray:
    """Returns a cost of each layer at each pair of bitwidths, float64[layers, bits].

    Raises:
      InputError: The table cannot be read, or lacks the cost, a layer or a pair of bitwidths.
    """
    held = read(path)
    if not held.get(name):
        known = ", ".join(cost for cost in held if held[cost]) or "nothing"
        raise InputError(f"{path}: has no {name}; it has {known}")
    found = np.empty((len(layers), len(bits)))
    for row, layer in enumerate(layers):
        for column, (w_bits, a_bits) in enumerate(bits):
            value = held[name].get((layer, w_bits, a_bits))
            if value is None:
                raise InputError(
                    f"{path}: no {name} of {layer} at w{w_bits}a{a_bits}; "
                    "every layer needs a line for all bitwidths that it may have"
                )
            found[row, column] = value
    return found
