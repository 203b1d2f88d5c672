"""Evolution of policies: `init`, `ask`, `tell`; all randomness comes from the seed.

state = evolution.init(seed, policies, scores)
children = evolution.ask(state, how, least, most)
state = evolution.tell(state, children, scores_of(children))
"""

from typing import NamedTuple

import numpy as np


class Evolution(NamedTuple):
    """The constants.

    Attributes:
      parents: Of the best policies so far, from which children come.
      children: Of each generation.
      mutated: Share of a child's bitwidths that are drawn anew.
    """

    parents: int = 10
    children: int = 20
    mutated: float = 0.1


class State(NamedTuple):
    """The policies that are kept, the best first.

    Attributes:
      seed: Of the random numbers.
      generation: Number of `tell`s so far.
      policies: int[kept, layers, 2].
      scores: float[kept], lower is better.
    """

    seed: int
    generation: int
    policies: np.ndarray
    scores: np.ndarray


def init(seed: int, policies: np.ndarray, scores: np.ndarray) -> State:
    """Returns the first population, of any size."""
    return _kept(State(seed, 0, policies, scores))


def _kept(state: State) -> State:
    """The state with its policies in order; what has no finite score is left out."""
    finite = np.flatnonzero(np.isfinite(state.scores))
    order = finite[np.argsort(state.scores[finite], kind="stable")]
    return state._replace(policies=state.policies[order], scores=state.scores[order])


def ask(state: State, how: Evolution, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Returns the children of a generation, int[children, layers, 2].

    A child has each bitwidth from one of two parents, or a new one.

    Args:
      state: The population; asking does not change it.
      how: The constants.
      least: Smallest bitwidths, int[layers, 2].
      most: Largest bitwidths.

    Raises:
      ValueError: No policy has a finite score.
    """
    if not len(state.policies):
        raise ValueError("no policy has a finite score")
    rng = np.random.default_rng((state.seed, state.generation))
    parents = state.policies[: how.parents]
    mothers, fathers = parents[rng.integers(len(parents), size=(2, how.children))]
    children = np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
    drawn = rng.integers(least, most, endpoint=True, size=children.shape)
    return np.where(rng.random(children.shape) < how.mutated, drawn, children)


def tell(state: State, children: np.ndarray, scores: np.ndarray) -> State:
    """Returns the population after the children were scored; lower is better.

    A child whose score is not finite never enters it.
    """
    policies = np.concatenate([state.policies, children])
    scores = np.concatenate([state.scores, scores])
    return _kept(State(state.seed, state.generation + 1, policies, scores))
