"""Evolution over integer genes: `init`, `ask`, `tell`; the caller scores.

state = evolution.init(genes, scores)  # lower is better
children = evolution.ask(key, state, Evolution(), least, most, allowed)
state = evolution.tell(state, children, scores_of(children))

Genes are int64[n, ...]: n candidates, each an array of any shape whose entries, the genes, lie
between `least` and `most` (both included; arrays of that shape). Every child is new: no candidate
that was ever given to `init` or `tell` is asked for again.

References:
  Guo et al., 2020, https://arxiv.org/abs/1904.00420, algorithm 1; where the paper is silent, the
  authors' code, https://github.com/megvii-model/SinglePathOneShot.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

TRIES = 10  # draws for each child that is wanted, before fewer are given

Allowed = Callable[[np.ndarray], np.ndarray]  # genes int64[n, ...] -> bool[n]
Repair = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # genes -> genes, same shape
Make = Callable[[int], np.ndarray]  # n -> genes int64[n, ...]


class Evolution(NamedTuple):
    """The constants; the defaults are those of the authors' code.

    Attributes:
      parents: The best candidates so far, from which children come.
      mutants: Children of one parent in each generation.
      crossed: Children of two parents in each generation.
      mutated: Probability that a gene of a mutant is drawn anew.
    """

    parents: int = 10
    mutants: int = 25
    crossed: int = 25
    mutated: float = 0.1


class Rules(NamedTuple):
    """What a candidate must be; see `ask`."""

    least: np.ndarray
    most: np.ndarray
    allowed: Allowed
    repair: Repair


class State(NamedTuple):
    """The candidates with a finite score, the best first.

    Attributes:
      genes: int64[kept, ...].
      scores: float64[kept], lower is better.
      generation: Number of `tell`s so far.
      seen: int64[seen, ...], all candidates that ever had a score, finite or not.
    """

    genes: np.ndarray
    scores: np.ndarray
    generation: int
    seen: np.ndarray


def anything(genes: np.ndarray) -> np.ndarray:
    """Allows all candidates."""
    return np.ones(len(genes), bool)


def unchanged(rng: np.random.Generator, genes: np.ndarray) -> np.ndarray:
    """Repairs nothing."""
    del rng
    return genes


def init(genes: np.ndarray, scores: np.ndarray) -> State:
    """Returns the first population, of any size.

    Raises:
      ValueError: Genes are no integers, or there is not one score for each candidate.
    """
    genes = checked(genes, scores)
    return _sorted(State(genes, np.asarray(scores, np.float64), 0, genes))


def tell(state: State, children: np.ndarray, scores: np.ndarray) -> State:
    """Returns the population after the children were scored; of equal ones the older is first.

    A child whose score is not finite never enters it, and is never asked for again.

    Args:
      state: The population.
      children: int[n, ...].
      scores: float[n], lower is better.

    Raises:
      ValueError: As of `init`.
    """
    children = checked(children, scores)
    genes, seen = (np.concatenate([old, children]) for old in (state.genes, state.seen))
    scores = np.concatenate([state.scores, scores])
    return _sorted(State(genes, scores, state.generation + 1, seen))


def checked(genes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the genes as int64.

    Raises:
      ValueError: They are no integers, or there is not one score for each candidate.
    """
    genes = np.asarray(genes)
    if not np.issubdtype(genes.dtype, np.integer):
        raise ValueError(f"genes of type {genes.dtype}: must be integers")
    if len(genes) != len(scores):
        raise ValueError(f"{len(scores)} scores of {len(genes)} candidates: must be as many")
    return genes.astype(np.int64)


def _sorted(state: State) -> State:
    """The state with the best first; what has no finite score is left out."""
    finite = np.flatnonzero(np.isfinite(state.scores))
    order = finite[np.argsort(state.scores[finite], kind="stable")]
    return state._replace(genes=state.genes[order], scores=state.scores[order])


def ask(
    key: jax.Array,
    state: State,
    how: Evolution,
    least: np.ndarray,
    most: np.ndarray,
    allowed: Allowed = anything,
    repair: Repair = unchanged,
) -> np.ndarray:
    """Returns the children of a generation, int64[mutants + crossed, ...]: new, all different.

    Mutants are first, then crossed ones, then random candidates in place of children that were not
    found; fewer in all where not even those are found. Pure: a key and a state give the same
    children, and one key serves all generations.

    Args:
      key: A PRNG key.
      state: The population.
      how: The constants.
      least: Smallest genes, int[...].
      most: Largest genes.
      allowed: Which candidates are within the budget.
      repair: Changes each child before that is asked, e.g. to meet a budget.

    Raises:
      ValueError: No candidate has a finite score, or a smallest gene is above its largest.
    """
    check_parents(state.genes, least, most)
    rng, parents = generator(key, state.generation), state.genes[: how.parents]

    def parent(count: int) -> np.ndarray:
        return parents[rng.integers(len(parents), size=count)]

    def mutants(count: int) -> np.ndarray:
        return mutate(rng, parent(count), how.mutated, least, most)

    def crossed(count: int) -> np.ndarray:
        return cross(rng, parent(count), parent(count))

    parts = [(mutants, how.mutants), (crossed, how.crossed)]
    return filled(rng, parts, state.seen, Rules(least, most, allowed, repair))


def random(
    key: jax.Array,
    count: int,
    least: np.ndarray,
    most: np.ndarray,
    allowed: Allowed = anything,
    repair: Repair = unchanged,
) -> np.ndarray:
    """Returns different random candidates, int64[count, ...]; fewer where no more are found.

    Args:
      key: A PRNG key.
      count: How many are wanted.
      least: Smallest genes, int[...].
      most: Largest genes.
      allowed: See `ask`.
      repair: See `ask`.
    """
    rng, none = generator(key, 0), np.zeros((0, *np.shape(least)), np.int64)
    rules = Rules(least, most, allowed, repair)
    return filled(rng, [(_uniform(rng, least, most), count)], none, rules)


def generator(key: jax.Array, generation: int) -> np.random.Generator:
    """Returns NumPy's random numbers for a generation."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).ravel(), generation])


def check_parents(genes: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
    """Refuses a population without parents, and bounds that no candidate can have.

    Raises:
      ValueError: There are none, or a smallest gene is above its largest.
    """
    if not len(genes):
        raise ValueError("no candidate has a finite score: there are no parents")
    if np.any(np.asarray(least) > np.asarray(most)):
        raise ValueError("least: a smallest gene is above the largest")


def mutate(
    rng: np.random.Generator,
    genes: np.ndarray,
    share: float,
    least: np.ndarray,
    most: np.ndarray,
) -> np.ndarray:
    """Returns the candidates with each gene drawn anew with a probability of `share`.

    Args:
      rng: Random numbers.
      genes: int64[n, ...].
      share: From 0 to 1.
      least: Smallest genes, int[...].
      most: Largest genes.
    """
    drawn = _uniform(rng, least, most)(len(genes))
    return np.where(rng.random(genes.shape) < share, drawn, genes)


def cross(rng: np.random.Generator, mothers: np.ndarray, fathers: np.ndarray) -> np.ndarray:
    """Returns candidates that have each gene from the one or the other with equal probability."""
    return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def _uniform(rng: np.random.Generator, least: np.ndarray, most: np.ndarray) -> Make:
    """Draws candidates uniformly between their bounds."""
    return lambda count: rng.integers(least, most, endpoint=True, size=(count, *np.shape(least)))


def filled(
    rng: np.random.Generator,
    parts: Sequence[tuple[Make, int]],
    seen: np.ndarray,
    rules: Rules,
) -> np.ndarray:
    """Returns new candidates of each part, and random ones in place of those not found.

    Args:
      rng: Random numbers.
      parts: What makes candidates, and how many are wanted of it.
      seen: int64[seen, ...], the candidates that are not new.
      rules: What a candidate must be.

    Returns:
      int64[n, ...], all different; fewer than wanted where not even random ones are found.
    """
    known, found = {one.tobytes() for one in seen}, []
    for make, wanted in parts:
        found += _novel(rng, make, wanted, known, rules)
    missing = sum(wanted for _, wanted in parts) - len(found)
    found += _novel(rng, _uniform(rng, rules.least, rules.most), missing, known, rules)
    return np.array(found, np.int64).reshape(-1, *np.shape(rules.least))


def _novel(
    rng: np.random.Generator, make: Make, wanted: int, known: set[bytes], rules: Rules
) -> list[np.ndarray]:
    """Up to `wanted` candidates that are allowed and not known, which they then are."""
    found: list[np.ndarray] = []
    for _ in range(TRIES if wanted > 0 else 0):
        made = np.ascontiguousarray(rules.repair(rng, make(wanted)), np.int64)
        for one in made[rules.allowed(made)]:
            if len(found) < wanted and one.tobytes() not in known:
                known.add(one.tobytes())
                found.append(one)
        if len(found) == wanted:
            break
    return found
