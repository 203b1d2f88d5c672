"""Pareto search over tables whose objectives add up over the blocks; all are minimized.

If a block's row is replaced by one that is no worse in every objective, no sum gets worse. So every
point of the whole front consists of rows of the blocks' own fronts, and blocks can be folded in
one after another, with a pruning after each. That is exact.

With an `epsilon` above 0 a fold keeps only one of the points in one cell of a grid. The grid is
logarithmic, its cells are a factor of ``1 + delta = (1 + epsilon)**(1 / folds)`` wide, and a cell
that another cell dominates is left out as a whole. So for each point that is left out, one is kept
that is at most ``1 + delta`` times as high in every objective. Sums of non-negative values keep
that factor, so the last front is within ``1 + epsilon`` of the exact one.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350 (pruning each block to its front).
  Kung et al., 1975, https://doi.org/10.1145/321906.321910 (non-dominated points by halving).
  Laumanns et al., 2002, https://doi.org/10.1162/106365602760234108 (epsilon-dominance).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from qnas_jax.errors import InputError

SUMS_AT_ONCE = 2**20  # formed before they are pruned: bounds the memory of a fold
MOST_POINTS = 500_000  # of a front, which are about 100 bytes each and get a line each
_PAIRS = 2**14  # compared one by one; more are divided


@dataclasses.dataclass(frozen=True, slots=True)
class Front:
    """The non-dominated combinations.

    Attributes:
      objectives: float64[points, objectives], sums over the blocks, in ascending order of
        the first objective.
      rows: int64[points, blocks], the row of each point in each block's table.
    """

    objectives: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: np.ndarray) -> "Front":
        return Front(self.objectives[places], self.rows[places])


def non_dominated(objectives: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point dominates, by ascending first objective.

    Of equal points only the first is kept. Points that are not finite are left out.

    Args:
      objectives: [points, objectives], all minimized; at least two objectives.
    """
    finite = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    order = finite[np.lexsort(objectives[finite].T[::-1])]
    if objectives.shape[1] == 2:
        second = objectives[order, 1]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return order[second < best_before]
    return order[_front_of_sorted(objectives[order])]


def _front_of_sorted(points: np.ndarray) -> np.ndarray:
    """Places of the non-dominated points, which are in lexicographic order.

    In that order only an earlier point can dominate a point, and an earlier one is no worse in
    the first objective, which need not be compared.
    """
    if len(points) ** 2 <= _PAIRS:
        return np.flatnonzero(~np.tril(_no_worse(points, points), -1).any(axis=1))
    half = len(points) // 2
    early, late = _front_of_sorted(points[:half]), half + _front_of_sorted(points[half:])
    return np.concatenate([early, late[~covered(points[early, 1:], points[late, 1:])]])


def covered(by: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether some row of `by` is no worse in every objective: bool[points].

    Args:
      by: [n, objectives], finite.
      points: [points, objectives], finite; at least two objectives.
    """
    if points.shape[1] == 2:
        order = np.lexsort(by.T[::-1])
        least = np.concatenate([[np.inf], np.minimum.accumulate(by[order, 1])])
        earlier = np.searchsorted(by[order, 0], points[:, 0], side="right")
        return least[earlier] <= points[:, 1]
    if len(by) * len(points) <= _PAIRS:
        return np.asarray(_no_worse(points, by).any(axis=1))
    values = np.unique(by[:, 0])
    cut = values[(len(values) - 1) // 2]
    low, late = by[:, 0] <= cut, points[:, 0] >= cut
    found = np.zeros(len(points), bool)
    # Low rows are no worse than late points in the first objective, which need not be compared.
    found[late] = covered(by[low, 1:], points[late, 1:])
    if len(values) > 1:
        found[~late] = covered(by[low], points[~late])
        left = late & ~found
        found[left] = covered(by[~low], points[left])
    return found


def _no_worse(points: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Whether `by` [m] is no worse than each of the points [n] everywhere: bool[n, m]."""
    found = np.ones((len(points), len(by)), bool)
    for objective in range(points.shape[1]):
        found &= by[:, objective] <= points[:, objective, None]
    return found


def pareto_front(
    tables: Sequence[np.ndarray], epsilon: float = 0.0, most_points: int = MOST_POINTS
) -> Front:
    """The front of the sums over one row of each table.

    Args:
      tables: One array [rows, objectives] for each block.
      epsilon: 0 for the exact front. Else for each possible sum the front has one that is at most
        ``1 + epsilon`` times as high in every objective; it has the lowest value of each objective,
        and no point on it dominates another. Objectives must not be negative.
      most_points: The largest front that is allowed.

    Returns:
      The front; empty where some block has no finite row.

    Raises:
      InputError: The front is larger; the message gives the setting to change.
    """
    step = np.log1p(epsilon) / len(tables)
    front = Front(np.zeros((1, tables[0].shape[1])), np.zeros((1, 0), dtype=np.int64))
    for number, table in enumerate(tables, 1):
        for folded in _foldings(front, table, step):
            if len(folded) > most_points:
                raise InputError(
                    f"search.epsilon={epsilon:g}: a front of more than {most_points} points at "
                    f"block {number} of {len(tables)}; "
                    f"set {max(0.01, 2 * epsilon):g}, or fewer search.costs"
                )
        front = folded
    return front[non_dominated(front.objectives)] if epsilon else front


def _foldings(front: Front, table: np.ndarray, step: float) -> Iterator[Front]:
    """The pruned sums of growing parts of a front and the rows of a table; the last has all."""
    rows = non_dominated(table)
    at_once = max(SUMS_AT_ONCE // max(len(rows), 1), 1)
    found = Front(np.zeros((0, table.shape[1])), np.zeros((0, front.rows.shape[1] + 1), np.int64))
    for start in range(0, max(len(front), 1), at_once):
        part = front[np.arange(start, min(start + at_once, len(front)))]
        sums = (part.objectives[:, None] + table[rows][None]).reshape(-1, table.shape[1])
        kept = _pruned(sums, step)
        before, row = np.divmod(kept, max(len(rows), 1))
        chosen = np.concatenate([part.rows[before], rows[row][:, None]], axis=1)
        found = Front(
            np.concatenate([found.objectives, sums[kept]]), np.concatenate([found.rows, chosen])
        )
        found = found[_pruned(found.objectives, step)]
        yield found


def _pruned(sums: np.ndarray, step: float) -> np.ndarray:
    """Indices of the sums to keep: the front, or one for each cell on the front of the cells."""
    if not step or not len(sums):
        return non_dominated(sums)
    cells = np.floor(np.log(np.maximum(sums, np.finfo(np.float64).tiny)) / step)
    return np.union1d(non_dominated(cells), sums.argmin(axis=0))
