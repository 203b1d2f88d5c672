"""When awareness of quantization matters: the table in float against that at few bits.

Where both rank alike, a search in float that is quantized afterwards finds the same networks, and a
joint search is not worth its price.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.metrics import kendall_tau
from qnas_jax.search import pareto

SIZE = "size_bytes"


class Picked(NamedTuple):
    """What a search in float and a search at the bitwidths pick within a size.

    Attributes:
      budget: The size in bytes, of the blocks alone.
      in_float: The subnet that has the lowest NSR in float, with the bitwidths.
      quantized: The subnet that has the lowest NSR at the bitwidths.
    """

    budget: float
    in_float: space.Subnet
    quantized: space.Subnet


def at_bits(rows: Table, pair: space.Bits) -> Table:
    """Returns the rows whose layers all have these bitwidths, block by block in the same order."""
    used = rows.path >= 0
    own = ((rows.w_bits == pair[0]) & (rows.a_bits == pair[1])) | ~used
    kept = own.all(axis=1)
    columns = ("block", "path", "w_bits", "a_bits", "nsr")
    cut = {name: getattr(rows, name)[kept] for name in columns}
    costs = {name: column[kept] for name, column in rows.costs.items()}
    return dataclasses.replace(rows, costs=costs, **cut)


def compare(plain: Table, own: Table) -> dict[str, Any]:
    """Returns how a table at some bitwidths ranks its paths, against the table in float.

    Args:
      plain: The table in float.
      own: The table at one pair of bitwidths, see `at_bits`; its rows are those of `plain`.

    Returns:
      "tau" and "regret" of each block, and "regret" of the whole network: by how much the NSR of
      what the float table picks exceeds the lowest one of its size, as a share of that; the mean
      and the highest over all sizes.
    """
    if not np.array_equal(plain.path, own.path):
        raise ValueError("the tables have other paths")
    blocks = []
    for block in range(own.blocks):
        rows = own.rows_of(block)
        regrets = _regrets(plain.nsr[rows], own.nsr[rows], own.costs[SIZE][rows])
        tau = kendall_tau(plain.nsr[rows], own.nsr[rows])
        blocks.append({"tau": tau, "regret": _mean_and_most(regrets)})
    sums, truth, sizes = _front_sums(plain, own)
    return {"blocks": blocks, "regret": _mean_and_most(_regrets(sums, truth, sizes))}


def _mean_and_most(regrets: np.ndarray) -> dict[str, float]:
    return {"mean": float(regrets.mean()), "most": float(regrets.max())}


def _regrets(scores: np.ndarray, truth: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each size: how much more noise the best by score has than the best, as a share of it."""
    order = np.argsort(sizes, kind="stable")
    scores, truth, sizes = scores[order], truth[order], sizes[order]
    ends = np.flatnonzero(np.append(np.diff(sizes) > 0, True)) + 1
    picked = [truth[np.argmin(scores[:end])] / truth[:end].min() - 1 for end in ends]
    return np.array(picked, np.float64)


def _front_sums(plain: Table, own: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NSR sums in float and at the bitwidths, and sizes, of the subnets on either front."""
    places = np.unique(np.concatenate([_front(plain, own), _front(own, own)]), axis=0)
    return tuple(column[places].sum(axis=1) for column in (plain.nsr, own.nsr, own.costs[SIZE]))  # type: ignore[return-value]


def _front(scored: Table, sized: Table) -> np.ndarray:
    """Rows of the subnets on the front of one table's NSR and the other one's size."""
    own = [sized.rows_of(block) for block in range(sized.blocks)]
    tables = [
        np.stack([scored.nsr[rows], sized.costs[SIZE][rows]], 1).astype(np.float64) for rows in own
    ]
    found = pareto.pareto_front(tables).rows
    return np.stack([rows[chosen] for rows, chosen in zip(own, found.T, strict=True)], axis=1)


def picks(plain: Table, own: Table, share: float = 0.5) -> Picked:
    """Returns what both searches pick at a size between the smallest and the largest subnet.

    Args:
      plain: The table in float.
      own: The table at one pair of bitwidths.
      share: 0 is the smallest size, 1 the largest.
    """
    sizes = [own.costs[SIZE][own.rows_of(block)] for block in range(own.blocks)]
    low, high = sum(float(s.min()) for s in sizes), sum(float(s.max()) for s in sizes)
    budget = low + share * (high - low)
    found = []
    for scored in (plain, own):
        places = _front(scored, own)
        fitting = places[own.costs[SIZE][places].sum(axis=1) <= budget]
        best = fitting[np.argmin(scored.nsr[fitting].sum(axis=1))]
        found.append(tuple(own.choices(row) for row in best))
    return Picked(budget, *found)
