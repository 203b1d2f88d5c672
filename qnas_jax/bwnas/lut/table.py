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
from qnas_jax.hardware import candidates, matrix
from qnas_jax.hardware import target as targets
from qnas_jax.run import artefacts
from qnas_jax.run.stage import reading
from qnas_jax.space import COSTS

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
      costs: A column for each known cost, by its name in `space.COSTS`: int64[R] or float64[R].
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

    @property
    def bits(self) -> tuple[space.Bits, ...]:
        """All pairs of bitwidths in the table."""
        used = self.path >= 0
        codes = np.unique(self.w_bits[used].astype(np.int64) * 256 + self.a_bits[used])
        return tuple(divmod(code, 256) for code in codes.tolist())

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
    paths that share a prefix are adjacent; a digit counts bitwidths, then ops.

    Attributes:
      block: Number of the block.
      bits: The bitwidths that each of its layers may take; one for the first.
      rows: Number of paths.
    """

    block: int
    bits: tuple[tuple[space.Bits, ...], ...]
    rows: int


def parts_of(searched: space.Space, bits: Sequence[space.Bits], per_layer: bool) -> list[Part]:
    """All parts of a table.

    Args:
      searched: Blocks and ops.
      bits: The bitwidths to choose from.
      per_layer: Whether each layer has bitwidths of its own, or each block.
    """
    parts = []
    for i, block in enumerate(searched.blocks):
        for pair in bits:
            others = tuple(bits) if per_layer else (pair,)
            rows = len(searched.ops) ** block.depth * len(others) ** (block.depth - 1)
            parts.append(Part(i, ((pair,), *[others] * (block.depth - 1)), rows))
    return parts


def build(
    nsr: np.ndarray, searched: space.Space, parts: Sequence[Part], per_channel: bool = True
) -> Table:
    """The table of all parts, with the size of each row.

    Args:
      nsr: float32[rows], of the parts' paths one after another.
      searched: Blocks and ops.
      parts: What was filled.
      per_channel: Whether weights have a scale for each output channel, or one for a layer.
    """
    width = max(block.depth for block in searched.blocks)
    columns = [_part_columns(part, searched, width) for part in parts]
    joined = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    table = Table(ops=searched.ops, nsr=nsr, costs={}, **joined)
    places = candidates.places(searched.blocks, (1, 1))  # the size does not depend on the pixels
    layers = candidates.layers(places, searched.ops)
    target = dataclasses.replace(targets.NONE, per_channel=per_channel)
    sizes = matrix.cost_matrix(target, layers, table.bits)
    table.costs.update(_columns(_sums(table, sizes)))
    bad = np.flatnonzero(~np.isfinite(nsr))
    for row in bad[:LOGGED_ROWS]:
        text = space.format_subnet((table.choices(row),))
        logger.warning("block %d, %s: NSR is not finite; left out", table.block[row] + 1, text)
    if len(bad) > LOGGED_ROWS:
        logger.warning("and %d more rows", len(bad) - LOGGED_ROWS)
    return table


def _part_columns(part: Part, searched: space.Space, width: int) -> dict[str, np.ndarray]:
    """The path of every row, and its bitwidths."""
    block, ops = searched.blocks[part.block], searched.ops
    rest = np.arange(part.rows)
    columns = {name: np.full((part.rows, width), -1, np.int8) for name in _PATH_COLUMNS}
    for layer in reversed(range(block.depth)):
        bits = np.array(part.bits[layer])
        rest, branch = np.divmod(rest, len(bits) * len(ops))
        choice, columns["path"][:, layer] = np.divmod(branch, len(ops))
        columns["w_bits"][:, layer], columns["a_bits"][:, layer] = bits[choice].T
    return {"block": np.full(part.rows, part.block, np.int32), **columns}


def with_costs(rows: Table, costs: Mapping[str, np.ndarray]) -> Table:
    """The table with a column for each cost, summed over the layers of a path.

    Paths with a layer that the target does not run, which has no finite cost, lose their NSR.

    Args:
      rows: The table.
      costs: float64[layers, ops, bits] by the column's name, see `cost_matrix`: of all layers of
        all blocks, of the table's ops, and of the bitwidths in `rows.bits`.
    """
    sums = _sums(rows, costs)
    runs = np.isfinite(sum(sums.values(), np.zeros(len(rows.nsr))))
    if not runs.all():
        left_out = np.count_nonzero(~runs)
        logger.info("%d of %d rows are not run by the target; left out", left_out, len(rows.nsr))
    nsr = np.where(runs, rows.nsr, np.inf).astype(rows.nsr.dtype)
    return dataclasses.replace(rows, nsr=nsr, costs={**rows.costs, **_columns(sums)})


def _columns(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns in the type of their cost. Integers have no NaN; such a row has no NSR anyway."""
    return {
        name: np.nan_to_num(values).astype(np.int64) if COSTS[name].kind is int else values
        for name, values in sums.items()
    }


def _sums(rows: Table, costs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sum of each cost over the layers of a path: float64[R]."""
    of_bits = np.zeros((256, 256), np.int64)
    for number, pair in enumerate(rows.bits):
        of_bits[pair] = number
    pairs = of_bits[rows.w_bits, rows.a_bits]
    sums = {name: np.zeros(len(rows.nsr)) for name in costs}
    before = 0  # layers of the blocks before this one
    for block in range(rows.blocks):
        own = rows.rows_of(block)
        depth = np.count_nonzero(rows.path[own[0]] >= 0)
        for layer in range(depth):
            chosen = (before + layer, rows.path[own, layer], pairs[own, layer])
            for name, values in costs.items():
                sums[name][own] += values[chosen]
        before += depth
    return sums


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
    with reading(path) as content, np.load(content) as file:
        columns = dict(file)
        ops = tuple(space.Op(*map(int, op)) for op in columns.pop("ops"))
        costs = {name: columns.pop(name) for name in COSTS if name in columns}
        return Table(ops=ops, costs=costs, **columns)
