"""The agent against NumPy by hand, and on a bandit whose optimum is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import haq
from qnas_jax.haq import agents, ddpg, env
from qnas_jax.space import Conv

HOW = ddpg.DDPG(hidden=(6, 5), warmup=2, batch=16, memory=3, actor_lr=1e-3, critic_lr=1e-2)
STEPS, FEATURES = 4, 3


sampled = jax.jit(lambda agent, number: ddpg._sampled(HOW, agent, number))
update = jax.jit(lambda agent, number: ddpg._update(HOW, agent, number))
store = jax.jit(lambda agent, *episode: ddpg.store(HOW, agent, *episode))
learn = jax.jit(lambda agent: ddpg.learn(HOW, agent))


def agent_of(seed=0):
    return ddpg.init(jax.random.PRNGKey(seed), HOW, STEPS, FEATURES)


def episode_of(rng):
    return (
        jnp.asarray(rng.normal(size=(STEPS, FEATURES)), jnp.float32),
        jnp.asarray(rng.uniform(size=STEPS), jnp.float32),
        jnp.float32(rng.normal()),
    )


def after(episodes, seed=0):
    rng, agent = np.random.default_rng(seed), agent_of(seed)
    for _ in range(episodes):
        agent = store(agent, *episode_of(rng))
    return agent


def relu(x):
    return np.maximum(x, 0)


def actor_by_hand(p, s):
    h = relu(relu(s @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
    return 1 / (1 + np.exp(-h[:, 0]))


def critic_by_hand(p, s, a):
    h = relu(s @ p["w0"] + p["b0"] + a[:, None] @ p["action"])
    return (relu(h @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])[:, 0]


def test_networks_are_those_of_the_paper():
    agent = agent_of()
    s = np.random.default_rng(1).normal(size=(7, FEATURES)).astype(np.float32)
    actor, critic = jax.tree.map(np.asarray, (agent.actor, agent.critic))
    a = actor_by_hand(actor, s)
    np.testing.assert_allclose(ddpg.action_of(agent.actor, jnp.asarray(s)), a, rtol=1e-5)
    values = ddpg.value_of(agent.critic, jnp.asarray(s), jnp.asarray(a))
    np.testing.assert_allclose(values, critic_by_hand(critic, s, a), rtol=1e-4, atol=1e-6)


def test_an_update_moves_the_critic_to_the_target_by_hand():
    """The critic's step equals Adam's on a gradient by finite differences in float64."""
    agent = after(HOW.warmup)
    agent = agent._replace(episodes=agent.episodes + 1)
    s, a, r, s2, last = map(np.asarray, sampled(agent, 0))
    new, error = update(agent, 0)
    old = jax.tree.map(lambda x: np.asarray(x, np.float64), agent)
    later = critic_by_hand(old.critic_target, s2, actor_by_hand(old.actor_target, s2))
    target = r - r.mean() + np.where(last, 0, later)  # the first average is the batch's mean

    def loss(critic):
        return np.mean((critic_by_hand(critic, s, a) - target) ** 2)

    assert error == pytest.approx(loss(old.critic), rel=1e-4)
    assert new.average == pytest.approx(r.mean(), rel=1e-5)
    for name in ("w0", "w2", "action"):
        place = (0, 0)
        moved = {k: v.copy() for k, v in old.critic.items()}
        moved[name][place] += 1e-6
        up = loss(moved)
        moved[name][place] -= 2e-6
        gradient = (up - loss(moved)) / 2e-6
        # Adam's first step is the learning rate in the gradient's direction.
        step = float(new.critic[name][place]) - old.critic[name][place]
        assert step == pytest.approx(-HOW.critic_lr * np.sign(gradient), rel=2e-2), name


def test_targets_follow_slowly():
    agent = after(HOW.warmup)._replace(episodes=jnp.int32(HOW.warmup + 1))
    new, _ = update(agent, 0)
    for old, target, network in (
        (agent.critic_target, new.critic_target, new.critic),
        (agent.actor_target, new.actor_target, new.actor),
    ):
        wanted = 0.99 * old["w1"] + 0.01 * network["w1"]
        np.testing.assert_allclose(target["w1"], wanted, rtol=1e-4, atol=1e-7)


def test_only_stored_transitions_are_sampled_and_next_states_are_of_the_same_episode():
    agent = after(2)
    rng = np.random.default_rng(0)
    episodes = [episode_of(rng) for _ in range(2)]
    states = np.concatenate([np.asarray(e[0]) for e in episodes])
    for number in range(5):
        s, a, r, s2, last = map(np.asarray, sampled(agent, number))
        for i in range(HOW.batch):
            place = int(np.flatnonzero((states == s[i]).all(1))[0])
            episode, step = divmod(place, STEPS)
            assert r[i] == episodes[episode][2]
            assert a[i] == episodes[episode][1][step]
            assert last[i] == (step == STEPS - 1)
            if not last[i]:
                np.testing.assert_array_equal(s2[i], states[place + 1])


def test_old_episodes_leave_the_memory():
    agent, rng = after(5), np.random.default_rng(0)
    rewards = [float(episode_of(rng)[2]) for _ in range(5)]
    assert sorted(np.asarray(agent.replay.rewards).tolist()) == pytest.approx(sorted(rewards[2:]))


def test_nothing_is_learned_in_the_warm_up():
    layers, cost, budget, accuracy, _, _ = bandit()
    state = agents.fresh([jax.random.PRNGKey(0)], HOW, layers, 4)
    run = agents.episode(HOW, layers, agents.worlds(layers, [cost], [budget]), accuracy, 100.0)
    actors = [np.asarray(state.agents.actor["w1"])]
    for number in range(4):
        state, _ = run(state, number)
        actors.append(np.asarray(state.agents.actor["w1"]))
    for number in range(HOW.warmup):
        np.testing.assert_array_equal(actors[number + 1], actors[0])
    assert (actors[3] != actors[2]).any()
    assert (actors[4] != actors[3]).any()


def test_actions_are_uniform_first_and_then_near_the_actor():
    agent, state = agent_of(), jnp.ones(FEATURES)
    act = jax.jit(jax.vmap(lambda a, i: ddpg.act(HOW, a, state, i), (None, 0)))
    steps = jnp.arange(2000)
    warm = np.asarray(act(agent, steps))
    np.testing.assert_allclose(np.quantile(warm, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
    mean = float(ddpg.action_of(agent.actor, state[None])[0])
    late = np.asarray(act(agent._replace(episodes=jnp.int32(HOW.warmup + 300)), steps))
    sigma = HOW.sigma * HOW.decay**300
    assert late.mean() == pytest.approx(mean, abs=4 * sigma / np.sqrt(2000))
    assert late.std() == pytest.approx(sigma, rel=0.1)
    early = np.asarray(act(agent._replace(episodes=jnp.int32(HOW.warmup)), steps))
    assert early.min() >= 0
    assert early.max() <= 1
    assert early.std() > 0.2


def test_agents_side_by_side_learn_as_they_do_alone():
    rng = np.random.default_rng(0)
    team = [store(after(HOW.warmup, seed), *episode_of(rng)) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *team)
    together = jax.jit(jax.vmap(lambda agent: ddpg.learn(HOW, agent)))(stacked)[0]
    for number, agent in enumerate(team):
        alone = learn(agent)[0]
        own = jax.tree.map(lambda x, number=number: x[number], together)
        for name in ("actor", "critic"):
            for key, value in getattr(alone, name).items():
                np.testing.assert_allclose(getattr(own, name)[key], value, rtol=1e-4, atol=1e-6)


def bandit(layers=4):
    """Layers whose noise is a quadratic of the missing bits; the budget is that of 5 bits."""
    rng = np.random.default_rng(0)
    convs = [Conv(f"c{i}", 1, 1, 1, 1, 4 * (i + 1), 8, 8, 8) for i in range(layers + 2)]
    found = env.describe(convs, range(layers + 2), chooses=(True, False))
    weight = rng.uniform(0.2, 2.0, layers + 2)
    price = rng.uniform(0.5, 2.0, layers + 2)
    cost = price[:, None, None] * np.arange(9.0)[None, :, None] * np.ones(9)
    uniform = np.clip(np.full(layers + 2, 5), *np.asarray(found.least)[:, :1].T, 8)
    uniform[[0, -1]] = 8
    budget = float((price * uniform).sum())

    def accuracy(policies):
        missing = 8 - np.asarray(policies, np.float64)[..., 0]
        return 100 - (weight * missing**2).sum(-1)

    grid = np.array(list(itertools.product(range(2, 9), repeat=layers)))
    all_w = np.concatenate([np.full((len(grid), 1), 8), grid, np.full((len(grid), 1), 8)], 1)
    allowed = (all_w * price).sum(1) <= budget * (1 + 1e-9)
    best = accuracy(np.stack([all_w, all_w], -1))[allowed].max()
    return found, cost, budget, accuracy, best, accuracy(np.stack([uniform] * 2, -1))


@pytest.mark.slow  # half a minute on idle cores
def test_the_optimum_of_a_bandit_is_found_in_9_of_10_seeds():
    """A quadratic of the bits of three layers, whose optimum uses up the budget."""
    best, price = np.array([6, 3, 7]), np.array([1.0, 0.5, 2.0])
    convs = [Conv(f"c{i}", 1, 1, 1, 1, 4 * (i + 1), 8, 8, 8) for i in range(3)]
    layers = env.describe(convs, range(3), chooses=(True, False), pinned=())
    cost = price[:, None, None] * np.arange(9.0)[None, :, None] * np.ones(9)
    world = agents.worlds(layers, [cost] * 10, [float(price @ best)] * 10)

    def accuracy(policies):
        return 100 - 5 * ((np.asarray(policies, np.float64)[..., 0] - best) ** 2).sum(-1)

    state = agents.fresh([jax.random.PRNGKey(s) for s in range(10)], haq.DDPG(), layers, 200)
    run = agents.episode(haq.DDPG(), layers, world, accuracy, 100.0)
    for number in range(200):
        state, _ = run(state, number)
    found = [agents.best_of(state, seed).bits[:, 0].tolist() for seed in range(10)]
    assert sum(bits == best.tolist() for bits in found) >= 9, found
    # Chance alone does not: of the 343 policies, all seeds together try most of them once.
    late = np.asarray(state.accuracy)[-20:].mean()
    assert late > np.asarray(state.accuracy)[:20].mean() + 20


def test_a_search_keeps_its_budget_and_its_best_policy():
    layers, cost, budget, accuracy, best, _ = bandit()
    how = haq.DDPG(hidden=(16, 16), warmup=5)
    result = haq.search(jax.random.key(0), accuracy, cost, layers, budget, agent=how, episodes=12)
    spent = cost[np.arange(6), result.policies[..., 0], result.policies[..., 1]].sum(-1)
    assert (spent <= budget * (1 + 1e-5)).all()
    assert result.accuracy == pytest.approx(accuracy(result.policies).max(), rel=1e-6)
    assert result.accuracy <= best + 1e-6
    np.testing.assert_allclose(accuracy(result.bits), result.accuracy, rtol=1e-6)


def test_a_budget_that_nothing_meets_is_refused():
    layers, cost, _, accuracy, _, _ = bandit()
    with pytest.raises(ValueError, match="the smallest bitwidths cost"):
        haq.search(jax.random.key(0), accuracy, cost, layers, 0.1, episodes=1)
