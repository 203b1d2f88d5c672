"""Subnets by evolution: the most accurate within a budget, or a front over a cost.

References:
  Guo et al., 2020, https://arxiv.org/abs/1904.00420 (SPOS: evolution within a budget);
  Chu et al., 2021, https://arxiv.org/abs/1907.01845 (FairNAS: NSGA-II).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from qnas_jax import space
from qnas_jax.oneshot import coding
from qnas_jax.oneshot.coding import Coding, Costs
from qnas_jax.search import evolution, front, nsga2, pareto
from qnas_jax.search.evolution import Evolution
from qnas_jax.search.nsga2 import NSGA2

NO_BUDGET = float(np.finfo(np.float64).max)  # allows every cost that is finite

Accuracies = Callable[[np.ndarray], np.ndarray]  # genes int64[n, genes] -> float64[n], in percent


class Searched(NamedTuple):
    """What a search chooses from.

    Attributes:
      coded: What genes number.
      costs: The cost that is bounded or minimized.
      budget: Its bound, or `NO_BUDGET`.
      cheapest: Genes of a subnet within the budget.
    """

    coded: Coding
    costs: Costs
    budget: float
    cheapest: np.ndarray


class Tried(NamedTuple):
    """All candidates that were scored, in this order.

    Attributes:
      genes: int64[n, genes].
      accuracy: float64[n], in percent.
    """

    genes: np.ndarray
    accuracy: np.ndarray


class Scored(NamedTuple):
    """A subnet that was scored with the shared weights.

    Attributes:
      subnet: The subnet.
      cost: Of its network, in the unit of `oneshot.cost`.
      accuracy: The task's figure on the held-out images, quantized, in percent.
    """

    subnet: space.Subnet
    cost: float
    accuracy: float


def evolved(drawn: Key[Array, ""], accuracies: Accuracies, given: Searched, count: int) -> Tried:
    """Scores random subnets within a budget, then children of the best.

    Args:
      drawn: PRNG key.
      accuracies: Scores candidates.
      given: What is chosen from.
      count: Subnets that are scored in all; fewer where no more are found.
    """
    how, (first, later) = Evolution(), jax.random.split(drawn)
    allowed, bounds = functools.partial(_allowed, given), _bounds(given)

    def tell(state: evolution.State | None, tried: Tried) -> evolution.State:
        if state is None:
            return evolution.init(tried.genes, -tried.accuracy)
        return evolution.tell(state, tried.genes, -tried.accuracy)

    genes = _first(first, given, min(how.mutants + how.crossed, count))
    return _generations(
        accuracies,
        genes,
        count,
        tell,
        lambda state: evolution.ask(later, state, how, *bounds, allowed),
    )


def spread_out(drawn: Key[Array, ""], accuracies: Accuracies, given: Searched, count: int) -> Tried:
    """Scores random subnets, then children of those nearest to the front of accuracy and cost.

    Args:
      drawn: PRNG key.
      accuracies: Scores candidates.
      given: What is chosen from.
      count: Subnets that are scored in all; fewer where no more are found.
    """
    how, (first, later) = NSGA2(), jax.random.split(drawn)
    allowed, bounds = functools.partial(_allowed, given), _bounds(given)

    def tell(state: nsga2.State | None, tried: Tried) -> nsga2.State:
        costs = coding.costs_of(given.coded, given.costs, tried.genes)
        objectives = np.stack([-tried.accuracy, costs], 1)
        if state is None:
            return nsga2.init(tried.genes, objectives, how)
        return nsga2.tell(state, tried.genes, objectives, how)

    genes = _first(first, given, min(how.population, count))
    return _generations(
        accuracies, genes, count, tell, lambda state: nsga2.ask(later, state, how, *bounds, allowed)
    )


def _generations(
    accuracies: Accuracies,
    genes: np.ndarray,
    count: int,
    tell: Callable[[Any, Tried], Any],
    ask: Callable[[Any], np.ndarray],
) -> Tried:
    """Scores generation by generation, from the first one on, until `count` are scored."""
    parts, state, left = [], None, count
    while len(genes):
        parts.append(Tried(genes, accuracies(genes)))
        state, left = tell(state, parts[-1]), left - len(genes)
        genes = ask(state)[:left]
    return Tried(*(np.concatenate(own) for own in zip(*parts, strict=True)))


def _allowed(given: Searched, genes: np.ndarray) -> np.ndarray:
    return coding.costs_of(given.coded, given.costs, genes) <= given.budget


def _bounds(given: Searched) -> tuple[np.ndarray, np.ndarray]:
    return coding.least(given.coded), coding.most(given.coded)


def _first(key: Key[Array, ""], given: Searched, count: int) -> np.ndarray:
    """Random candidates; few meet a low budget, so what exceeds it is brought within."""
    allowed = functools.partial(_allowed, given)
    return evolution.random(
        key, count, *_bounds(given), allowed, functools.partial(_repaired, given)
    )


def _repaired(given: Searched, rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
    """Candidates with as few genes of the cheapest, in random order, as the budget asks for."""
    found = []
    for one in genes:
        ranks = rng.permutation(len(one))
        # Row n has n genes of the cheapest; the last is the cheapest, which meets the budget.
        rows = np.where(ranks < np.arange(len(one) + 1)[:, None], given.cheapest, one)
        found.append(rows[np.argmax(_allowed(given, rows))])
    return np.array(found, np.int64).reshape(genes.shape)


def best(scored: Sequence[Scored]) -> Scored:
    """Returns the most accurate subnet; of equal ones the cheapest."""
    return max(scored, key=lambda one: (one.accuracy, -one.cost))


def spread(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Returns subnets of the front, evenly spread by cost, ends included, the cheapest first.

    Args:
      scored: Subnets.
      count: How many are wanted; the front may have fewer.
    """
    values = np.array([(one.cost, -one.accuracy) for one in scored], np.float64)
    best_ones = [scored[place] for place in pareto.non_dominated(values)]
    picked = [best_ones[place] for place in front.evenly([one.cost for one in best_ones], count)]
    return sorted(picked, key=lambda one: one.cost)
