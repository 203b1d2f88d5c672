"""The look-up table: one row for each path of each block at each bitwidth.

Search, reports and tools read tables; nothing here knows a network.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.hardware import size
from qnas_jax.hardware.target import LayerCost, Place
from qnas_jax.run import artefacts

logger = logging.getLogger(__name__)

LOGGED_ROWS = 20  # of those that failed
_PATH_COLUMNS = ("path", "w_bits", "a_bits")


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Columns over R rows; layers beyond a block's depth hold -1.

    Attributes:
      ops: The candidates that `path` counts.
      block: int32[R], from 0.
      path: int8[R, depth], op indices.
      w_bits: int8[R, depth].
      a_bits: int8[R, depth].
      nsr: float32[R]; not finite for a path that failed.
      costs: A column for each cost that is known, by its name in `space.COSTS`.
    """

    ops: tuple[space.Op, ...]
    block: np.ndarray
    path: np.ndarray
    w_bits: np.ndarray
    a_bits: np.ndarray
    nsr: np.ndarray
    costs: dict[str, np.ndarray]

    def rows_of(self, block: int) -> np.ndarray:
        """Rows of a block."""
        return np.flatnonzero(self.block == block)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self.block.max()) + 1

    def choices(self, row: int | np.integer) -> tuple[space.Choice, ...]:
        """A row as the choices of a subnet's block."""
        return tuple(
            space.Choice(self.ops[op], int(w_bits), int(a_bits))
            for op, w_bits, a_bits in zip(
                self.path[row], self.w_bits[row], self.a_bits[row], strict=True
            )
            if op >= 0
        )

    def objectives(self, block: int, costs: tuple[str, ...]) -> np.ndarray:
        """float64[rows of the block, 1 + costs]: the NSR, then each cost."""
        rows = self.rows_of(block)
        columns = [self.nsr[rows], *(self.costs[name][rows] for name in costs)]
        return np.stack([c.astype(np.float64) for c in columns], axis=1)


class Part(NamedTuple):
    """A part of the table that is filled at once.

    Its rows are numbered like digits, the first layer being the most significant, so that
    paths that share a prefix stand together; a digit counts bitwidths, then ops.

    Attributes:
      block: Number of the block.
      bits: The bitwidths that each of its layers may take; one for the first.
      rows: Number of paths.
    """

    block: int
    bits: tuple[tuple[space.Bits, ...], ...]
    rows: int


def parts_of(searched: space.Space, bits: Sequence[space.Bits], per_layer: bool) -> list[Part]:
    """All there is to fill.

    Args:
      searched: Blocks and ops.
      bits: The bitwidths to choose from.
      per_layer: Whether every layer chooses for itself, or a block for all its layers.
    """
    parts = []
    for i, block in enumerate(searched.blocks):
        for pair in bits:
            others = tuple(bits) if per_layer else (pair,)
            rows = len(searched.ops) ** block.depth * len(others) ** (block.depth - 1)
            parts.append(Part(i, ((pair,), *[others] * (block.depth - 1)), rows))
    return parts


def build(nsr: np.ndarray, searched: space.Space, parts: Sequence[Part]) -> Table:
    """The table of all parts, with the size of each row.

    Args:
      nsr: float32[rows], of the parts' paths one after another.
      searched: Blocks and ops.
      parts: What was filled.
    """
    width = max(block.depth for block in searched.blocks)
    columns = [_part_columns(part, searched, width) for part in parts]
    joined = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    costs = {"size_bytes": joined.pop("size_bytes")}
    table = Table(ops=searched.ops, nsr=nsr, costs=costs, **joined)
    bad = np.flatnonzero(~np.isfinite(nsr))
    for row in bad[:LOGGED_ROWS]:
        text = space.format_subnet((table.choices(row),))
        logger.warning("block %d, %s: NSR is not finite; left out", table.block[row] + 1, text)
    if len(bad) > LOGGED_ROWS:
        logger.warning("and %d more rows", len(bad) - LOGGED_ROWS)
    return table


def _part_columns(part: Part, searched: space.Space, width: int) -> dict[str, np.ndarray]:
    """What tells which path a row is, and its size."""
    block, ops = searched.blocks[part.block], searched.ops
    rest = np.arange(part.rows)
    columns = {name: np.full((part.rows, width), -1, np.int8) for name in _PATH_COLUMNS}
    size_bytes = np.zeros(part.rows, np.int64)
    for layer in reversed(range(block.depth)):
        bits = np.array(part.bits[layer])
        rest, branch = np.divmod(rest, len(bits) * len(ops))
        choice, op = np.divmod(branch, len(ops))
        columns["path"][:, layer] = op
        columns["w_bits"][:, layer], columns["a_bits"][:, layer] = bits[choice].T
        size_bytes += _op_bytes(block, ops, layer, bits[:, 0])[choice, op]
    return {"block": np.full(part.rows, part.block, np.int32), **columns, "size_bytes": size_bytes}


def _op_bytes(block: space.Block, ops, layer: int, w_bits: np.ndarray) -> np.ndarray:
    """Bytes of each op at a layer, int64[bitwidths, ops]."""
    in_channels, stride = block.layer_shape(layer)
    shape = (1, 1, in_channels)  # the size does not depend on the pixels
    convs = [space.mbconv_convs(op, "", shape, block.channels, stride, 1) for op in ops]
    return np.array([[size.network_bytes(c, int(w)) for c in convs] for w in w_bits])


def with_costs(rows: Table, where: Sequence[Place], costs: Mapping[str, LayerCost]) -> Table:
    """The table with a column for each cost, summed over a path's layers.

    Paths with a layer that a device does not run, which has no finite cost, lose their NSR.

    Args:
      rows: The table.
      where: Every layer's place.
      costs: What a layer costs, by the column's name.
    """
    columns = {name: _layer_sums(rows, where, cost) for name, cost in costs.items()}
    runs = np.isfinite(sum(columns.values(), np.zeros(len(rows.nsr))))
    if not runs.all():
        left_out = np.count_nonzero(~runs)
        logger.info("%d of %d rows are not run by the target; left out", left_out, len(rows.nsr))
    nsr = np.where(runs, rows.nsr, np.inf).astype(rows.nsr.dtype)
    return dataclasses.replace(rows, nsr=nsr, costs={**rows.costs, **columns})


def _layer_sums(rows: Table, where: Sequence[Place], cost: LayerCost) -> np.ndarray:
    total = np.zeros(len(rows.nsr))
    for place in where:
        in_block = rows.rows_of(place.block)
        for number, op in enumerate(rows.ops):
            picked = in_block[rows.path[in_block, place.layer] == number]
            pairs = np.stack([rows.w_bits[picked, place.layer], rows.a_bits[picked, place.layer]])
            pairs, inverse = np.unique(pairs.astype(np.int64), axis=1, return_inverse=True)
            total[picked] += cost(place, op, *pairs)[inverse]
    return total


def save(path: pathlib.Path, table: Table) -> None:
    """Writes the table as `.npz`."""
    columns = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    costs = columns.pop("costs")
    columns["ops"] = np.array([[op.kernel, op.expansion] for op in table.ops], np.int32)
    with artefacts.writing(path) as file:
        np.savez(file, **columns, **costs)


def load(path: pathlib.Path) -> Table:
    """Reads a table.

    Raises:
      InputError: There is none, or it is damaged.
    """
    with artefacts.reading(path) as content, np.load(content) as file:
        columns = dict(file)
        ops = tuple(space.Op(*map(int, op)) for op in columns.pop("ops"))
        costs = {name: columns.pop(name) for name in space.COSTS if name in columns}
        return Table(ops=ops, costs=costs, **columns)
