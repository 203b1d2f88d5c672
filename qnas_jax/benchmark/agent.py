"""HAQ's agent on the benchmark: it chooses each block's op, then its bitwidth, as one action each.

The agent and its constants are those of `haq.ddpg`. What a network's layers are there, the blocks
are here. A larger action is an op of a higher mean cost, or more bits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qnas_jax.benchmark.searchers import Question, cheapest
from qnas_jax.haq import ddpg, env

HOW = ddpg.DDPG()


class Steps(NamedTuple):
    """The decisions of an episode, in order.

    Attributes:
      features: float32[genes, features] of a decision, each in [0, 1].
      genes: int64[genes], the gene that a decision sets.
      ranked: For each decision, the values of its gene, in the order of its actions.
    """

    features: Array
    genes: np.ndarray
    ranked: list[np.ndarray]


def agent_search(
    seed: int, question: Question, evaluations: int
) -> Int[np.ndarray, "evaluations genes"]:
    """Looks at what an agent proposes that learns from the accuracy of each proposal.

    What exceeds the budget is made smaller first, where it is largest, and the agent learns from
    what is left. It may look at a candidate twice.

    Args:
      seed: Of the agent.
      question: The budget.
      evaluations: How many candidates.

    References:
      Wang et al., 2019, https://arxiv.org/abs/1811.08886.
    """
    question.check()
    steps = _steps(question)
    features = steps.features.shape[1] + 1  # and the action before
    agent = ddpg.init(jax.random.PRNGKey(seed), HOW, len(steps.genes), features)
    counts, found = np.array([len(own) for own in steps.ranked]), []
    for episode in range(evaluations):
        # As in `haq.env`: the first proposal is the largest of all.
        proposed = np.asarray(_propose(agent, steps.features, jnp.asarray(counts)))
        places = proposed if episode else counts - 1
        left = _within_budget(question, steps, places)
        genes = _genes(steps, left)
        found.append(genes)
        actions = jnp.asarray((left + 0.5) / counts, jnp.float32)
        before = jnp.concatenate([jnp.ones(1), actions[:-1]])
        states = jnp.concatenate([steps.features, before[:, None]], axis=1)
        reward = env.reward_of(jnp.asarray(question.accuracy(genes), jnp.float32), 100.0)
        agent = _store(agent, states, actions, reward)
        if episode >= HOW.warmup:
            agent = _learn(agent)
    return np.array(found, np.int64).reshape(-1, len(counts))


def _steps(question: Question) -> Steps:
    """Each block's op, then its bitwidth."""
    found, counts = question.benchmark, question.counts
    blocks = found.space.blocks
    cost = found.cost_tables[question.cost]
    rows = np.array([[i, b.in_channels, b.channels, b.stride] for i, b in enumerate(blocks)], float)
    scaled = (rows - rows.min(0)) / np.maximum(np.ptp(rows, axis=0), 1.0)
    features = np.repeat(scaled, 2, axis=0)
    kinds = np.tile([0.0, 1.0], len(blocks))[:, None]
    genes = np.arange(len(counts)).reshape(2, -1).T.ravel()
    by_bits, ranked = np.argsort(found.bits), []
    for block in range(len(blocks)):
        ranked += [np.argsort(cost[block].mean(1), kind="stable"), by_bits]
    return Steps(jnp.asarray(np.concatenate([features, kinds], 1), jnp.float32), genes, ranked)


def _genes(steps: Steps, places: np.ndarray) -> np.ndarray:
    """The candidate whose decisions have these places in `ranked`."""
    genes = np.empty(len(places), np.int64)
    genes[steps.genes] = [own[place] for own, place in zip(steps.ranked, places, strict=True)]
    return genes


def _within_budget(question: Question, steps: Steps, places: np.ndarray) -> np.ndarray:
    """Takes one from the place that is highest for its gene until the cost meets the budget.

    Where costs do not rise with the places, all may be at the first one and still cost too much:
    then it is the cheapest candidate.
    """
    places, counts = places.copy(), np.array([len(own) for own in steps.ranked])
    while not question.allowed(_genes(steps, places)):
        if not places.any():
            genes = cheapest(question)[steps.genes]
            pairs = zip(steps.ranked, genes, strict=True)
            return np.array([int(np.flatnonzero(own == gene)[0]) for own, gene in pairs])
        places[np.argmax(places / counts)] -= 1
    return places


@jax.jit
def _propose(
    agent: ddpg.Agent, features: Float[Array, "steps f"], counts: Int[Array, "steps"]
) -> Int[Array, "steps"]:
    """The place of each decision, eq. 3."""

    def step(last, given):
        number, own, count = given
        action = ddpg.act(HOW, agent, jnp.append(own, last), number)
        place = jnp.minimum(jnp.floor(action * count), count - 1)
        return (place + 0.5) / count, place.astype(jnp.int32)

    numbers = jnp.arange(len(counts))
    return jax.lax.scan(step, jnp.float32(1), (numbers, features, counts))[1]


@functools.partial(jax.jit, donate_argnums=0)
def _store(agent: ddpg.Agent, states: Array, actions: Array, reward: Array) -> ddpg.Agent:
    return ddpg.store(HOW, agent, states, actions, reward)


@functools.partial(jax.jit, donate_argnums=0)
def _learn(agent: ddpg.Agent) -> ddpg.Agent:
    return ddpg.learn(HOW, agent)[0]
