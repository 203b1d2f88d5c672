"""The look-up table: one row for each path of each block at each bitwidth.

Search, reports and tools read tables; nothing here knows a network.
"""

import dataclasses
import pathlib

import numpy as np

from qnas_jax import artefact, space
from qnas_jax.errors import InputError

COSTS = ("size_bytes", "latency_ms", "energy_mj")


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
      costs: A column for each cost that is known, by its name in `COSTS`.
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


def block_rows(
    block: int, depth: int, ops: tuple[space.Op, ...], w_bits: int, a_bits: int, width: int
) -> dict[str, np.ndarray]:
    """The columns that tell which path a row is, for a block at one bitwidth.

    `width` is the depth of the deepest block, to which the rows are filled up.
    """
    paths = space.paths(depth, len(ops))
    path = np.full((len(paths), width), -1, np.int8)
    path[:, :depth] = paths
    return {
        "block": np.full(len(paths), block, np.int32),
        "path": path,
        "w_bits": np.where(path >= 0, w_bits, -1).astype(np.int8),
        "a_bits": np.where(path >= 0, a_bits, -1).astype(np.int8),
    }


def save(path: pathlib.Path, table: Table) -> None:
    """Writes the table as `.npz`."""
    columns = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    costs = columns.pop("costs")
    columns["ops"] = np.array([[op.kernel, op.expansion] for op in table.ops], np.int32)
    with artefact.writing(path) as file:
        np.savez(file, **columns, **costs)


def load(path: pathlib.Path) -> Table:
    """Reads a table.

    Raises:
      InputError: There is none, or it is damaged.
    """
    try:
        with np.load(path) as file:
            columns = dict(file)
        ops = tuple(space.Op(*map(int, op)) for op in columns.pop("ops"))
        costs = {name: columns.pop(name) for name in COSTS if name in columns}
        return Table(ops=ops, costs=costs, **columns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no table ({error})") from None
