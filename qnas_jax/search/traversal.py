"""DNA's traversal of all subnets under a budget, as released: a baseline, which is not exact.

Each block's candidates are sorted by loss. Nested loops, one for each block, go over them and skip
a prefix that leaves too little for the cheapest candidates of the later blocks. In the innermost
loop the first candidate within the budget is the best one for its prefix. Its index becomes the
upper bound of that loop, as in the same block only a lower loss could help. When the bound reaches
0, the loop around it ends where it is, gets its bound there, and the inner bound is reset.

The mistake: a bound is kept while the loops around it advance and those between restart at 0. Then
a combination with a lower sum can lie beyond the bound. On 300 random instances of 5 blocks x 8
candidates (tests/search/test_traversal.py) it was always within the budget. It missed the optimum
252 times where better candidates cost more, by 5.9 % of the lowest sum on average and 27 % at
worst; where costs had nothing to do with losses 89 times, by 25 % and 192 %. Rounding alone
costs no more than 0.1 % of losses above 1e-4. `pareto.pareto_front` and the best of its points
within the budget missed none.

References:
  Li et al., 2020, https://arxiv.org/abs/1911.13053; the authors' code,
  https://github.com/changlin31/DNA, searching/process_potential.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Traversal(NamedTuple):
    """The subnet that was found.

    Attributes:
      rows: int64[blocks], the row of each block's candidates.
      loss: The sum of their losses, each rounded to float16 as in the authors' code.
      cost: The sum of their costs.
    """

    rows: np.ndarray
    loss: float
    cost: float


class _Sorted(NamedTuple):
    """A block's candidates by ascending loss; `limit` is the highest cost of a prefix up to it."""

    rows: np.ndarray
    losses: np.ndarray
    costs: np.ndarray
    limit: float


def traverse(candidates: Sequence[np.ndarray], budget: float) -> Traversal:
    """Returns the subnet that DNA's traversal finds below a budget.

    As in the authors' code, losses are rounded to float16 after they were sorted, and the whole
    cost must be BELOW the budget. Their bound of 100 on the sum of losses is left out.

    Args:
      candidates: Of each block float[rows, 2]: loss and cost. Candidates that are not finite are
        left out.
      budget: What the sum of costs must be below.

    Raises:
      ValueError: There is no block, or no subnet below the budget.
    """
    if not len(candidates):
        raise ValueError("candidates: there is no block")
    blocks = _sorted(candidates, budget)
    lengths = [len(block.rows) for block in blocks]
    best = _walk(blocks, lengths, [*lengths], (), 0.0, 0.0, None)
    if best is None:
        lowest = sum(block.costs.min(initial=np.inf) for block in blocks)
        raise ValueError(f"budget={budget:g}: the cheapest subnet costs {lowest:g}")
    loss, cost, places = best
    rows = [block.rows[place] for block, place in zip(blocks, places, strict=True)]
    return Traversal(np.array(rows, np.int64), loss, cost)


def _sorted(candidates: Sequence[np.ndarray], budget: float) -> list[_Sorted]:
    blocks, later = [], 0.0
    for table in reversed(candidates):
        finite = np.flatnonzero(np.isfinite(table).all(1))
        rows = finite[np.argsort(table[finite, 0], kind="stable")]
        with np.errstate(over="ignore"):  # above 65504 they are infinite
            losses = table[rows, 0].astype(np.float16).astype(np.float64)
        blocks.append(_Sorted(rows, losses, table[rows, 1], budget - later))
        later += float(table[rows, 1].min(initial=np.inf))
    return blocks[::-1]


_Best = tuple[float, float, tuple[int, ...]]  # loss, cost, place of each block's candidate


def _walk(
    blocks: list[_Sorted],
    lengths: list[int],
    bounds: list[int],
    prefix: tuple[int, ...],
    loss: float,
    cost: float,
    best: _Best | None,
) -> _Best | None:
    """The loop over the block after a prefix; `bounds` are those of all loops, and change."""
    number = len(prefix)
    if number == len(blocks) - 1:
        return _innermost(blocks[-1], lengths, bounds, prefix, loss, cost, best)
    block = blocks[number]
    for place in range(bounds[number]):
        # The outermost loop has no such check: its bound shrinks without effect.
        if number and place >= bounds[number]:
            if bounds[number] == 0:
                bounds[number - 1], bounds[number] = prefix[-1], lengths[number]
            break
        spent = cost + float(block.costs[place])
        if spent <= block.limit:
            lost = loss + float(block.losses[place])
            best = _walk(blocks, lengths, bounds, (*prefix, place), lost, spent, best)
    return best


def _innermost(
    block: _Sorted,
    lengths: list[int],
    bounds: list[int],
    prefix: tuple[int, ...],
    loss: float,
    cost: float,
    best: _Best | None,
) -> _Best | None:
    """The last loop: the first candidate below the budget, and the bounds that follow from it."""
    fitting = np.flatnonzero(cost + block.costs[: bounds[-1]] < block.limit)
    if not len(fitting):
        return best
    place = int(fitting[0])
    found = (loss + float(block.losses[place]), cost + float(block.costs[place]))
    if best is None or found[0] < best[0]:
        best = (*found, (*prefix, place))
    bounds[-1] = place
    if place == 0:
        if prefix:  # with one block there is no loop around
            bounds[-2] = prefix[-1]
        bounds[-1] = lengths[-1]
    return best
