"""Exact Pareto search over tables whose objectives add up over the blocks.

Replacing a block's row by one that is no worse in every objective makes no sum worse, so
every point of the whole front is made of rows of the blocks' own fronts, and blocks can be
folded in one after another, pruning after each. All objectives are to be low.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350 (pruning each block to its front).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Front:
    """The non-dominated combinations.

    Attributes:
      objectives: float64[points, objectives], sums over the blocks, in ascending order of
        the first objective.
      rows: int64[points, blocks], the row that each point takes in each block's table.
    """

    objectives: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def non_dominated(objectives: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point dominates, by ascending first objective.

    Of equal points only the first is kept. Points that are not finite are left out.

    Args:
      objectives: [points, objectives], each to be low.
    """
    finite = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    order = finite[np.lexsort(objectives[finite].T[::-1])]
    if objectives.shape[1] == 2:
        second = objectives[order, 1]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return order[second < best_before]
    # In lexicographic order a point can only be dominated by an earlier one.
    kept: list[int] = []
    front = np.empty((0, objectives.shape[1]))
    for index in order:
        point = objectives[index]
        if not (front <= point).all(axis=1).any():
            kept.append(index)
            front = np.concatenate([front, point[None]])
    return np.array(kept, dtype=np.int64)


def pareto_front(tables: Sequence[np.ndarray]) -> Front:
    """The whole front of the sums over one row of each table.

    Args:
      tables: One array [rows, objectives] for each block.

    Returns:
      The front; empty where some block has no finite row.
    """
    front = Front(np.zeros((1, tables[0].shape[1])), np.zeros((1, 0), dtype=np.int64))
    for table in tables:
        rows = non_dominated(table)
        sums = front.objectives[:, None] + table[rows][None]
        sums = sums.reshape(-1, table.shape[1])
        kept = non_dominated(sums)
        before, row = np.divmod(kept, max(len(rows), 1))
        front = Front(sums[kept], np.concatenate([front.rows[before], rows[row][:, None]], axis=1))
    return front
