"""DDPG: an agent that learns a continuous action for each layer from one reward an episode.

Pure functions over records: `Agent` is all that a checkpoint needs. `jax.vmap` over agents trains
seeds, budgets and devices side by side.

References:
  Lillicrap et al., 2016, https://arxiv.org/abs/1509.02971 (DDPG).
  Wang et al., 2019, https://arxiv.org/abs/1811.08886, section 3.5; where the paper is silent, the
  constants are those of its code, https://github.com/mit-han-lab/haq.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt32


class DDPG(NamedTuple):
    """The constants of an agent.

    Attributes:
      hidden: Units of the two hidden layers of actor and critic. (300, 300) is the code's; the
        paper has (400, 300).
      actor_lr: Adam's learning rate of the actor.
      critic_lr: Adam's learning rate of the critic.
      gamma: Discount of the next step's value.
      tau: Share of the networks that enters their targets with each update.
      sigma: Standard deviation of the noise on actions.
      decay: Factor of that deviation with each episode after the warm-up.
      warmup: Episodes of random actions, without updates.
      batch: Transitions of an update.
      memory: Episodes that are kept.
      baseline: Share of a batch's mean reward that enters the moving average.
    """

    hidden: tuple[int, int] = (300, 300)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    gamma: float = 1.0
    tau: float = 0.01
    sigma: float = 0.5
    decay: float = 0.99
    warmup: int = 20
    batch: int = 64
    memory: int = 64
    baseline: float = 0.5


class Replay(NamedTuple):
    """The latest episodes, a ring.

    Attributes:
      states: float32[memory, steps, features].
      actions: float32[memory, steps].
      rewards: float32[memory]; every step of an episode has its reward.
    """

    states: Array
    actions: Array
    rewards: Array


class Agent(NamedTuple):
    """All that changes while an agent learns.

    Attributes:
      actor: Parameters of the policy: state -> action.
      critic: Parameters of the value: state, action -> sum of rewards.
      actor_target: Slow copy of the actor.
      critic_target: Slow copy of the critic.
      actor_optimizer: Adam's state.
      critic_optimizer: Adam's state.
      replay: The latest episodes.
      average: Moving average of rewards, the baseline.
      episodes: Number of episodes that were stored.
      key: PRNG key; it stays, and is folded with the number of the episode.
    """

    actor: PyTree
    critic: PyTree
    actor_target: PyTree
    critic_target: PyTree
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    replay: Replay
    average: Array
    episodes: Array
    key: Array


def init(key: UInt32[Array, "2"], how: DDPG, steps: int, features: int) -> Agent:
    """Returns a fresh agent.

    Args:
      key: A raw PRNG key, `jax.random.PRNGKey`, which checkpoints can hold.
      how: Its constants.
      steps: Steps of an episode.
      features: Numbers in a state.
    """
    actor_key, critic_key, action_key, _ = jax.random.split(key, 4)
    actor = _layers(actor_key, (features, *how.hidden, 1))
    critic = _layers(critic_key, (features, *how.hidden, 1))
    critic["action"] = _uniform(action_key, (1, how.hidden[0]), 1)
    replay = Replay(
        jnp.zeros((how.memory, steps, features)),
        jnp.zeros((how.memory, steps)),
        jnp.zeros(how.memory),
    )
    return Agent(
        actor,
        critic,
        jax.tree.map(jnp.copy, actor),  # copies, so that a caller may donate an agent's memory
        jax.tree.map(jnp.copy, critic),
        optax.adam(how.actor_lr).init(actor),
        optax.adam(how.critic_lr).init(critic),
        replay,
        average=jnp.float32(0),
        episodes=jnp.int32(0),
        key=key,
    )


def _layers(key, sizes: tuple[int, ...]) -> dict[str, Array]:
    """Three dense layers, initialized as PyTorch does."""
    found = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        w_key, b_key = jax.random.split(jax.random.fold_in(key, number))
        found[f"w{number}"] = _uniform(w_key, (inputs, outputs), inputs)
        found[f"b{number}"] = _uniform(b_key, (1, outputs), inputs)
    return found


def _uniform(key, shape, inputs):
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / jnp.sqrt(inputs)


def _hidden(params, u):
    return jax.nn.relu(jax.nn.relu(u) @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def action_of(params: PyTree, states: Float[Array, "n f"]) -> Float[Array, "n"]:
    """Returns the actor's actions, each in (0, 1)."""
    return jax.nn.sigmoid(_hidden(params, states @ params["w0"] + params["b0"]))[:, 0]


def value_of(
    params: PyTree, states: Float[Array, "n f"], actions: Float[Array, "n"]
) -> Float[Array, "n"]:
    """Returns the critic's estimates of the rewards to come."""
    u = states @ params["w0"] + params["b0"] + actions[:, None] @ params["action"]
    return _hidden(params, u)[:, 0]


def act(
    how: DDPG, agent: Agent, state: Float[Array, "f"], step: Int[Array, ""]
) -> Float[Array, ""]:
    """Returns an action in [0, 1]: uniform in the warm-up, then the actor's with noise.

    The noise is a normal distribution that is cut off at 0 and 1; its deviation falls with the
    episodes.
    """
    key = jax.random.fold_in(jax.random.fold_in(agent.key, agent.episodes), step)
    mean = action_of(agent.actor, state[None])[0]
    sigma = how.sigma * how.decay ** jnp.maximum(agent.episodes - how.warmup, 0)
    ends = (0.0 - mean) / sigma, (1.0 - mean) / sigma
    drawn = mean + sigma * jax.random.truncated_normal(key, *ends)
    warm = agent.episodes < how.warmup
    return jnp.clip(jnp.where(warm, jax.random.uniform(key), drawn), 0.0, 1.0)


def store(
    how: DDPG,
    agent: Agent,
    states: Float[Array, "steps f"],
    actions: Float[Array, "steps"],
    reward: Float[Array, ""],
) -> Agent:
    """Stores an episode, in place of the oldest one if the memory is full."""
    place = agent.episodes % how.memory
    replay = Replay(
        agent.replay.states.at[place].set(states),
        agent.replay.actions.at[place].set(actions),
        agent.replay.rewards.at[place].set(reward),
    )
    return agent._replace(replay=replay, episodes=agent.episodes + 1)


def learn(how: DDPG, agent: Agent) -> tuple[Agent, Float[Array, ""]]:
    """Updates an agent once for each step of an episode; for after the warm-up.

    Returns:
      The agent, and the mean squared error of the critic.
    """

    def one(agent, number):
        return _update(how, agent, number)

    agent, errors = lax.scan(one, agent, jnp.arange(agent.replay.actions.shape[1]))
    return agent, jnp.mean(errors)


def _update(how: DDPG, agent: Agent, number) -> tuple[Agent, Array]:
    """One update of critic, actor and targets with a batch of stored transitions."""
    states, actions, rewards, after, last = _sampled(how, agent, number)
    mean = jnp.mean(rewards)
    first = (agent.episodes == how.warmup + 1) & (number == 0)
    average = jnp.where(first, mean, agent.average + how.baseline * (mean - agent.average))
    later = value_of(agent.critic_target, after, action_of(agent.actor_target, after))
    target = rewards - average + how.gamma * jnp.where(last, 0.0, later)

    def error(critic):
        return jnp.mean(jnp.square(value_of(critic, states, actions) - target))

    def loss(actor):
        return -jnp.mean(value_of(critic, states, action_of(actor, states)))

    value, gradient = jax.value_and_grad(error)(agent.critic)
    critic, critic_optimizer = _step(how.critic_lr, gradient, agent.critic_optimizer, agent.critic)
    gradient = jax.grad(loss)(agent.actor)
    actor, actor_optimizer = _step(how.actor_lr, gradient, agent.actor_optimizer, agent.actor)
    agent = agent._replace(
        actor=actor,
        critic=critic,
        actor_target=optax.incremental_update(actor, agent.actor_target, how.tau),
        critic_target=optax.incremental_update(critic, agent.critic_target, how.tau),
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        average=average,
    )
    return agent, value


def _step(lr: float, gradient: PyTree, optimizer: Any, params: PyTree) -> tuple[PyTree, Any]:
    updates, optimizer = optax.adam(lr).update(gradient, optimizer)
    return optax.apply_updates(params, updates), optimizer


def _sampled(how: DDPG, agent: Agent, number):
    """States, actions, rewards, next states and whether a step is the last, of a batch."""
    key = jax.random.fold_in(jax.random.fold_in(agent.key, agent.episodes), number)
    steps = agent.replay.actions.shape[1]
    held = jnp.minimum(agent.episodes, how.memory) * steps
    places = jax.random.randint(jax.random.fold_in(key, 1), (how.batch,), 0, held)
    episode, step = places // steps, places % steps
    replay, last = agent.replay, step == steps - 1
    after = replay.states[episode, jnp.minimum(step + 1, steps - 1)]
    return (
        replay.states[episode, step],
        replay.actions[episode, step],
        replay.rewards[episode],
        after,
        last,
    )
