"""NSGA-II over integer genes: several objectives, all minimized, without weights between them.

state = nsga2.init(genes, objectives, how)
children = nsga2.ask(key, state, how, least, most, allowed)
state = nsga2.tell(state, children, objectives_of(children), how)
state.genes[state.ranks == 0]  # the front

A candidate is better if it has a lower rank, and among equals if it is in a less crowded place.
Genes and what is allowed are as in `evolution`; every child is new.

References:
  Deb et al., 2002, https://doi.org/10.1109/4235.996017.
  Chu et al., 2021, https://arxiv.org/abs/1907.01845 (FairNAS searches with it).
"""

from typing import NamedTuple

import jax
import numpy as np

from qnas_jax.search import evolution
from qnas_jax.search.evolution import Allowed, Rules, anything


class NSGA2(NamedTuple):
    """The constants.

    Attributes:
      population: Candidates that survive a generation, and children in each.
      mutated: Probability that a gene of a child is drawn anew.
    """

    population: int = 50
    mutated: float = 0.1


class State(NamedTuple):
    """The candidates that survived, the best first.

    Attributes:
      genes: int64[kept, ...].
      objectives: float64[kept, objectives], all minimized and finite.
      ranks: int64[kept], see `ranks_of`.
      crowding: float64[kept], see `crowding_of`.
      generation: Number of `tell`s so far.
      seen: int64[seen, ...], all candidates that ever had objectives, finite or not.
    """

    genes: np.ndarray
    objectives: np.ndarray
    ranks: np.ndarray
    crowding: np.ndarray
    generation: int
    seen: np.ndarray


def init(genes: np.ndarray, objectives: np.ndarray, how: NSGA2) -> State:
    """Returns what survives of a first population of any size.

    Args:
      genes: int[n, ...].
      objectives: float[n, objectives], all minimized.
      how: The constants.

    Raises:
      ValueError: Genes are no integers, or there is not one row of objectives for each candidate.
    """
    genes = evolution.checked(genes, objectives)
    return _survivors(genes, np.asarray(objectives, np.float64), how, 0, genes)


def tell(state: State, children: np.ndarray, objectives: np.ndarray, how: NSGA2) -> State:
    """Returns what survives of the population and its children.

    A child with an objective that is not finite never does, and is never asked for again.

    Args:
      state: The population.
      children: int[n, ...].
      objectives: float[n, objectives], all minimized.
      how: The constants.

    Raises:
      ValueError: As of `init`.
    """
    children = evolution.checked(children, objectives)
    genes, seen = (np.concatenate([old, children]) for old in (state.genes, state.seen))
    objectives = np.concatenate([state.objectives, objectives])
    return _survivors(genes, objectives, how, state.generation + 1, seen)


def _survivors(
    genes: np.ndarray, objectives: np.ndarray, how: NSGA2, generation: int, seen: np.ndarray
) -> State:
    """The best candidates, front by front; of the last front those that are crowded least."""
    finite = np.isfinite(objectives).all(1)
    genes, objectives = genes[finite], objectives[finite]
    ranks = ranks_of(objectives)
    chosen = np.lexsort((-_crowding_by_rank(objectives, ranks), ranks))[: how.population]
    genes, objectives, ranks = genes[chosen], objectives[chosen], ranks[chosen]
    # Distances are those between survivors: the ones left out crowd nobody any more.
    crowding = _crowding_by_rank(objectives, ranks)
    order = np.lexsort((-crowding, ranks))
    return State(genes[order], objectives[order], ranks[order], crowding[order], generation, seen)


def ranks_of(objectives: np.ndarray) -> np.ndarray:
    """Returns the rank of each point, int64[n].

    Rank 0 is the front: no point is as low in all objectives and lower in one. Rank 1 is the front
    of what is left without rank 0, and so on. Equal points have equal ranks.

    Args:
      objectives: float[n, objectives], all minimized.

    Raises:
      ValueError: An objective is not finite.
    """
    _check_finite(objectives)
    by, points = objectives[:, None], objectives[None]
    dominates = np.asarray((by <= points).all(-1) & (by < points).any(-1))
    ranks, rank = np.full(len(objectives), -1), 0
    while (left := ranks < 0).any():
        ranks[left & ~dominates[left].any(0)] = rank
        rank += 1
    return ranks


def crowding_of(objectives: np.ndarray) -> np.ndarray:
    """Returns how far apart the neighbours of each point of one front are, float64[n].

    Of each objective the distance between the next lower and the next higher point, as a share of
    the whole range, summed. Infinite for the lowest and the highest point of an objective; an
    objective that all points share adds nothing.

    Args:
      objectives: float[n, objectives].

    Raises:
      ValueError: An objective is not finite.
    """
    _check_finite(objectives)
    found = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        span = np.ptp(values) if len(values) else 0.0
        if span > 0:
            found[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
            found[order[[0, -1]]] = np.inf
    return found


def _crowding_by_rank(objectives: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The crowding distance of each point within its front."""
    found = np.zeros(len(ranks))
    for rank in np.unique(ranks):
        found[ranks == rank] = crowding_of(objectives[ranks == rank])
    return found


def _check_finite(objectives: np.ndarray) -> None:
    if not np.isfinite(objectives).all():
        raise ValueError("objectives: all must be finite")


def ask(
    key: jax.Array,
    state: State,
    how: NSGA2,
    least: np.ndarray,
    most: np.ndarray,
    allowed: Allowed = anything,
) -> np.ndarray:
    """Returns the children of a generation, int64[population, ...]: new, all different.

    Each parent is the better one of two random candidates; a child has each gene from one of its
    two parents, and some are then drawn anew. Random candidates replace children that were not
    found; there are fewer in all where not even those are found. Pure, as in `evolution`.

    Args:
      key: A PRNG key.
      state: The population.
      how: The constants.
      least: Smallest genes, int[...].
      most: Largest genes.
      allowed: Which candidates are within the budget, genes int64[n, ...] -> bool[n].

    Raises:
      ValueError: No candidate has finite objectives, or a smallest gene is above its largest.
    """
    evolution.check_parents(state.genes, least, most)
    rng, places = evolution.generator(key, state.generation), _places(state)

    def parent(count: int) -> np.ndarray:
        pairs = rng.integers(len(places), size=(2, count))
        return state.genes[np.where(places[pairs[0]] <= places[pairs[1]], *pairs)]

    def children(count: int) -> np.ndarray:
        crossed = evolution.cross(rng, parent(count), parent(count))
        return evolution.mutate(rng, crossed, how.mutated, least, most)

    rules = Rules(least, most, allowed, evolution.unchanged)
    return evolution.filled(rng, [(children, how.population)], state.seen, rules)


def _places(state: State) -> np.ndarray:
    """The place of each candidate by rank, then by crowding; equal ones share theirs."""
    pairs = np.stack([state.ranks, -state.crowding], 1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
