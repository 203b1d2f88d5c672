"""Searches on the benchmark that learn: evolution, a predictor, logits by gradient, HAQ's agent.

Each is a `Search`, see `searchers.py`, where random draws and the exact search of the noise stand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from qnas_jax.benchmark.agent import agent_search
from qnas_jax.benchmark.searchers import (
    Question,
    Search,
    cheapest,
    every,
    random_search,
)
from qnas_jax.search import evolution, predictor
from qnas_jax.search.evolution import Evolution

POPULATION = 50
ROUNDS = 4  # of the predictor, each fitted on all candidates so far
LOGIT_STEPS, LOGIT_RATE = 500, 0.1  # of Adam
PRICE_RATE = 0.05  # of the relative excess over the budget, that a step adds to its price
PRICE_NOW = 5.0  # price of the present excess, without which logits settle before the price rises

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
    noise = question.benchmark.block_nsr(*np.split(candidates, 2, axis=1))
    per_round = -(-evaluations // ROUNDS)
    seen = np.random.default_rng(seed).permutation(len(candidates))[:per_round]
    while len(seen) < min(evaluations, len(candidates)):
        fit = predictor.fit_linear(noise[seen], question.accuracy(candidates[seen]))
        promised = predictor.predict(fit, noise)
        promised[seen] = -np.inf
        count = min(per_round, evaluations - len(seen), len(candidates) - len(seen))
        seen = np.concatenate([seen, np.argsort(-promised, kind="stable")[:count]])
    return candidates[seen]


def gradient_search(seed: int, question: Question, evaluations: int) -> Genes:
    """Looks at what logits have drawn that learn by gradient, the last draws first.

    When they have learned they draw few different candidates, so it often looks at fewer than it
    may. The cheapest candidate is the last.

    Each block has a logit for each op at each bitwidth. A step draws one of them (Gumbel softmax,
    straight through), descends on the noise and on the price of the excess over the budget, and
    the price follows the excess. The noise stands for the accuracy, which has no gradient here.

    Args:
      seed: Of all draws.
      question: The budget.
      evaluations: How many candidates, at most.

    References:
      Wu et al., 2019, https://arxiv.org/abs/1812.03443 (logits for each layer, expected cost);
      Chen et al., 2022, https://arxiv.org/abs/2210.08485 (ops and bitwidths together).
    """
    question.check()
    found = question.benchmark
    noise, cost = found.nsr[:, :, 1:], found.cost_tables[question.cost]
    fixed = found.fixed_costs[question.cost]
    given = _Relaxed(
        jnp.asarray(noise.reshape(len(noise), -1), jnp.float32),
        jnp.asarray(cost.reshape(len(cost), -1), jnp.float32),
        jnp.float32(fixed / question.budget),
        jnp.float32(question.budget),
    )
    drawn = np.asarray(_drawn_by_gradient(jax.random.key(seed), given))[::-1]
    genes = np.concatenate(np.divmod(drawn, len(found.bits)), axis=1).astype(np.int64)
    genes = np.concatenate([genes[question.allowed(genes)], cheapest(question)[None]])
    first = np.sort(np.unique(genes, axis=0, return_index=True)[1])
    return genes[first][:evaluations]


class _Relaxed(NamedTuple):
    """Noise and cost of each op at each bitwidth, [blocks, choices]; what else costs, relative."""

    noise: Array
    cost: Array
    fixed: Array
    budget: Array


@jax.jit
def _drawn_by_gradient(key: Array, given: _Relaxed) -> Int[Array, "steps blocks"]:
    """The choice of each block that each step draws."""
    adam = optax.adam(LOGIT_RATE)

    def loss(logits, price, key) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        soft = jax.nn.softmax(logits + jax.random.gumbel(key, logits.shape))
        place = jnp.argmax(soft, axis=1)
        share = jax.nn.one_hot(place, soft.shape[1]) + soft - jax.lax.stop_gradient(soft)
        over = jnp.sum(share * given.cost) / given.budget + given.fixed - 1
        now = jnp.maximum(price + PRICE_NOW * jax.lax.stop_gradient(over), 0.0)
        return jnp.sum(share * given.noise) + now * over, (place, over)

    def step(state, number):
        logits, moments, price = state
        own = jax.random.fold_in(key, number)
        gradient, (place, over) = jax.grad(loss, has_aux=True)(logits, price, own)
        updates, moments = adam.update(gradient, moments)
        price = jnp.maximum(price + PRICE_RATE * over, 0.0)
        return (optax.apply_updates(logits, updates), moments, price), place

    logits = jnp.zeros_like(given.noise)
    first = logits, adam.init(logits), jnp.float32(0)
    return jax.lax.scan(step, first, jnp.arange(LOGIT_STEPS))[1]


LEARNERS: dict[str, Search] = {
    "evolution": evolution_search,
    "predictor": predictor_search,
    "gradient": gradient_search,
    "agent": agent_search,
}
