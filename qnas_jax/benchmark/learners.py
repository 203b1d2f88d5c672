"""Searches on the benchmark that learn from what they have seen: evolution, predictor.

Each is a `Search`, see `searchers.py`, where random draws and the exact search of the noise stand.
"""

import jax
import numpy as np
from jaxtyping import Int

from qnas_jax.benchmark.searchers import Question, every, random_search
from qnas_jax.search import evolution, predictor
from qnas_jax.search.evolution import Evolution

POPULATION = 50
ROUNDS = 4  # of the predictor, each fitted on all candidates so far

Genes = Int[np.ndarray, "evaluations genes"]


def evolution_search(seed: int, question: Question, evaluations: int) -> Genes:
    """Looks at what SPOS's evolution asks for, after a random population.

    Args:
      seed: Of all draws.
      question: The budget.
      evaluations: How many candidates, at most.

    References:
      Guo et al., 2020, https://arxiv.org/abs/1904.00420, algorithm 1.
    """
    key, most = jax.random.key(seed), question.counts - 1
    genes = random_search(seed, question, min(POPULATION, evaluations))
    state = evolution.init(genes, -question.accuracy(genes))
    while len(genes) < evaluations:
        asked = evolution.ask(key, state, Evolution(), 0 * most, most, question.allowed)
        asked = asked[: evaluations - len(genes)]
        if not len(asked):
            break  # nothing within the budget is new
        state = evolution.tell(state, asked, -question.accuracy(asked))
        genes = np.concatenate([genes, asked])
    return genes


def predictor_search(seed: int, question: Question, evaluations: int) -> Genes:
    """Looks at what a weighted sum of block NSRs promises most of; it is fitted again each round.

    The first candidates are random; the sum of all later ones is fitted with weights that are not
    negative.

    Args:
      seed: Of the first draw.
      question: The budget.
      evaluations: How many candidates, at most.

    References:
      Moons et al., 2021, https://arxiv.org/abs/2012.08859, section 3.3.
    """
    candidates = every(question)
    noise = _noise(question, candidates)
    per_round = -(-evaluations // ROUNDS)
    seen = np.random.default_rng(seed).permutation(len(candidates))[:per_round]
    while len(seen) < min(evaluations, len(candidates)):
        fit = predictor.fit_linear(noise[seen], question.accuracy(candidates[seen]))
        promised = predictor.predict(fit, noise)
        promised[seen] = -np.inf
        count = min(per_round, evaluations - len(seen), len(candidates) - len(seen))
        seen = np.concatenate([seen, np.argsort(-promised, kind="stable")[:count]])
    return candidates[seen]


def _noise(question: Question, genes: np.ndarray) -> np.ndarray:
    """The NSR of each block, float64[n, blocks]."""
    ops, bits = np.split(genes, 2, axis=1)
    blocks = np.arange(ops.shape[1])
    return question.benchmark.nsr[blocks, ops, 1 + bits].astype(np.float64)


LEARNERS = {
    "evolution": evolution_search,
    "predictor": predictor_search,
}
