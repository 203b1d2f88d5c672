"""The search: agents propose policies, see their accuracy, and learn, side by side."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from qnas_jax.errors import InputError
from qnas_jax.haq import ddpg, env
from qnas_jax.haq.ddpg import DDPG
from qnas_jax.haq.env import Layers, World
from qnas_jax.space import MOST_BITS

Accuracies = Callable[[np.ndarray], np.ndarray]  # policies int[n, layers, 2] -> percent, float[n]

ROUNDING = 1e-6  # share by which a float32 sum of costs may exceed the budget


PUBLISHED = DDPG()


class State(NamedTuple):
    """All that changes during a search; the first axis of `agents` is the agents.

    Attributes:
      agents: The agents.
      bits: uint8[episodes, agents, layers, 2], the policies so far.
      accuracy: float32[episodes, agents], in percent.
    """

    agents: PyTree
    bits: Array
    accuracy: Array


def worlds(layers: Layers, costs: Sequence[np.ndarray], budgets: Sequence[float]) -> World:
    """Returns the worlds of several agents, with the published order of taking off bits.

    Args:
      layers: The layers.
      costs: For each agent, float64[layers, w_bits, a_bits].
      budgets: For each agent, the highest sum.
    """
    held = [np.where(np.isfinite(cost), cost, 0.0) for cost in costs]
    order = env.from_last(layers)
    return World(
        jnp.asarray(np.stack(held), jnp.float32),
        jnp.asarray(budgets, jnp.float32) * (1 + ROUNDING),
        jnp.broadcast_to(order, (len(costs), *order.shape)),
    )


def ordered(world: World, layers: Layers, slots: np.ndarray) -> World:
    """Returns the worlds with another order of taking off bits.

    Args:
      world: The worlds.
      layers: The layers.
      slots: All slots of all layers in that order; those that are not chosen are left out.
    """
    order = slots[np.isin(slots, np.asarray(layers.slots))]
    return world._replace(order=jnp.broadcast_to(jnp.asarray(order, jnp.int32), world.order.shape))


def fresh(keys: Sequence[Array], how: DDPG, layers: Layers, episodes: int) -> State:
    """Returns the state before the first episode; a raw PRNG key for each agent."""
    init = functools.partial(ddpg.init, how=how, steps=len(layers.slots), features=env.FEATURES)
    agents = jax.vmap(init)(jnp.stack(list(keys)))
    shape = episodes, len(keys)
    return State(
        agents,
        jnp.zeros((*shape, len(layers.least), 2), jnp.uint8),
        jnp.zeros(shape, jnp.float32),
    )


def episode(
    how: DDPG,
    layers: Layers,
    world: World,
    evaluate: Accuracies,
    original: float,
    trim: env.Trim = env.within_budget,
) -> Callable[[State, int], tuple[State, dict[str, float]]]:
    """Returns a function (state, number) -> state after that episode, figures of all agents.

    Args:
      how: The constants of the agents.
      layers: The layers.
      world: The world of each agent.
      evaluate: Gives accuracies in percent.
      original: That of the network in float, in percent.
      trim: Brings a proposal within its budget.
    """

    def run(state: State, number: int):
        found = _propose(how, trim, layers, state.agents, world)
        bits = np.asarray(found.bits)
        accuracy = jnp.asarray(evaluate(bits), jnp.float32)
        rewards = env.reward_of(accuracy, original)
        agents = _store(how, state.agents, found.states, found.actions, rewards)
        agents, errors = _learn(how, agents) if number >= how.warmup else (agents, jnp.zeros(1))
        state = State(
            agents,
            state.bits.at[number].set(bits.astype(np.uint8)),
            state.accuracy.at[number].set(accuracy),
        )
        best = jnp.max(state.accuracy[: number + 1], axis=0)
        figures = {"critic_error": errors, "reward": rewards, "accuracy": accuracy, "best": best}
        return state, {name: float(jnp.mean(values)) for name, values in figures.items()}

    return run


# Of all agents; compiled once for agents of the same constants and shapes.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _propose(how: DDPG, trim: env.Trim, layers: Layers, team: PyTree, world: World) -> env.Episode:
    return jax.vmap(functools.partial(env.propose, how, layers, trim=trim))(team, world)


@functools.partial(jax.jit, static_argnums=0)
def _store(how: DDPG, team: PyTree, *episodes: Array) -> PyTree:
    return jax.vmap(functools.partial(ddpg.store, how))(team, *episodes)


@functools.partial(jax.jit, static_argnums=0)
def _learn(how: DDPG, team: PyTree) -> tuple[PyTree, Array]:
    return jax.vmap(functools.partial(ddpg.learn, how))(team)


class Result(NamedTuple):
    """What a search found.

    Attributes:
      bits: int64[layers, 2], the policy of the highest accuracy.
      accuracy: Its accuracy, in percent.
      history: float32[episodes], the accuracy of each episode's policy.
      policies: uint8[episodes, layers, 2].
    """

    bits: np.ndarray
    accuracy: float
    history: np.ndarray
    policies: np.ndarray


def best_of(state: State, agent: int) -> Result:
    """Returns what an agent found."""
    accuracy, bits = np.asarray(state.accuracy)[:, agent], np.asarray(state.bits)[:, agent]
    place = int(np.argmax(accuracy))
    return Result(bits[place].astype(np.int64), float(accuracy[place]), accuracy, bits)


def search(
    key: Key[Array, ""],
    evaluate: Accuracies,
    cost: Float[np.ndarray, "l w a"],
    layers: Layers,
    budget: float,
    agent: DDPG = PUBLISHED,
    episodes: int = 600,
    original: float = 100.0,
) -> Result:
    """Finds bitwidths of a network's layers within a budget.

    Args:
      key: PRNG key.
      evaluate: Accuracies, in percent, of policies int[n, layers, 2]: the bitwidths of each layer's
        weights and of the activations that it reads.
      cost: What each layer costs at each pair of bitwidths, indexed by the bitwidths themselves.
      layers: The layers, see `describe`.
      budget: The highest sum of costs.
      agent: The constants of the agent.
      episodes: Number of policies to try.
      original: Accuracy of the network in float, in percent; only shifts the rewards.

    Raises:
      InputError: No policy meets the budget.

    References:
      Wang et al., 2019, https://arxiv.org/abs/1811.08886.
    """
    least, bits = np.asarray(layers.least), MOST_BITS + 1
    if cost.shape != (len(least), bits, bits):
        raise InputError(f"cost: has the shape {cost.shape}, must be {(len(least), bits, bits)}")
    if episodes < 1:
        raise InputError(f"episodes={episodes}: must be at least 1")
    lowest = float(cost[np.arange(len(least)), least[:, 0], least[:, 1]].sum())
    if not lowest <= budget:
        raise InputError(f"budget={budget:g}: the smallest bitwidths cost {lowest:g}")
    world = worlds(layers, [cost], [budget])
    state = fresh([jax.random.key_data(key)], agent, layers, episodes)
    run = episode(agent, layers, world, evaluate, original)
    for number in range(episodes):
        state, _ = run(state, number)
    return best_of(state, 0)
