"""Episodes, bits and budgets against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.haq import agents, ddpg, env
from qnas_jax.space import Conv


def convs(count):
    """Layers of all kinds: every third is depthwise, the last reads one pixel."""
    found = []
    for i in range(count):
        channels = 8 + 4 * i
        groups, out = (channels, channels) if i % 3 == 1 else (1, channels + 4)
        side = 1 if i == count - 1 else 16 // (1 + i % 2)
        shape = (3 if i % 3 == 1 else 1, 1 + i % 2, 1, groups, channels, out, side, side)
        found.append(Conv(f"layer{i}", *shape))
    return found


def world_of(layers, rng, share=0.4):
    count = len(layers.least)
    cost = rng.uniform(0.5, 2.0, (count, 1, 1)) * np.arange(9)[:, None] * np.arange(9)
    largest = cost[np.arange(count), 8, 8].sum()
    return env.World(
        jnp.asarray(cost, jnp.float32), jnp.float32(share * largest), env.from_last(layers)
    )


def swept(bits, layers, world):
    """The published sweep as plain loops."""
    least, lead, cost = (np.asarray(x) for x in (layers.least, layers.lead, world.cost))
    bits = np.array(bits)
    bits[:, 1] = bits[lead, 1]

    def spent():
        return sum(cost[i, w, a] for i, (w, a) in enumerate(bits))

    while spent() > float(world.budget) and (bits > least).any():
        for layer in reversed(range(len(bits))):
            for kind in (1, 0):  # activations, then weights
                if kind == 1 and lead[layer] != layer:
                    continue
                if bits[layer, kind] > least[layer, kind]:
                    bits[layer, kind] -= 1
                    bits[:, 1] = bits[lead, 1]
                if spent() <= float(world.budget):
                    return bits
    return bits


@pytest.mark.parametrize("share", [0.9, 0.4, 0.1, 0.0])
def test_the_budget_is_met_as_by_a_plain_sweep(share):
    rng = np.random.default_rng(0)
    layers = env.describe(convs(7), [0, 1, 2, 2, 4, 2, 6])
    world = world_of(layers, rng, share)
    trim = jax.jit(lambda bits: env.within_budget(layers, world, bits))
    for _ in range(20):
        drawn = rng.integers(layers.least, layers.most, endpoint=True)
        found = np.asarray(trim(jnp.asarray(drawn, jnp.int32)))
        np.testing.assert_array_equal(found, swept(drawn, layers, world))


def test_bits_are_taken_where_there_are_most():
    layers = env.describe(convs(6), [0, 1, 2, 2, 4, 5])
    world = world_of(layers, np.random.default_rng(2), 0.6)
    least, lead, cost = (np.asarray(x) for x in (layers.least, layers.lead, world.cost))
    rng = np.random.default_rng(3)
    trim = jax.jit(lambda bits: env.from_highest(layers, world, bits))
    for _ in range(10):
        drawn = rng.integers(layers.least, layers.most, endpoint=True)
        bits = drawn.copy()
        bits[:, 1] = bits[lead, 1]
        while sum(cost[i, w, a] for i, (w, a) in enumerate(bits)) > float(world.budget):
            best = None
            for layer in reversed(range(6)):
                for kind in (1, 0):
                    free = bits[layer, kind] > least[layer, kind]
                    if free and (kind == 0 or lead[layer] == layer):
                        if best is None or bits[layer, kind] > bits[best]:
                            best = layer, kind
            bits[best] -= 1
            bits[:, 1] = bits[lead, 1]
        np.testing.assert_array_equal(trim(jnp.asarray(drawn, jnp.int32)), bits)
    whole = np.asarray(trim(layers.most))
    free = whole[(np.asarray(layers.least) < 8) & (lead == np.arange(6))[:, None]]
    assert free.max() - free.min() <= 1, "the largest policy becomes an even one"


def test_another_order_takes_from_other_layers():
    layers = env.describe(convs(5), range(5))
    world = world_of(layers, np.random.default_rng(1), 0.8)
    forward = world._replace(order=world.order[::-1])
    last, first = (np.asarray(env.within_budget(layers, w, layers.most)) for w in (world, forward))
    assert last[1].sum() > first[1].sum()
    assert last[3].sum() < first[3].sum()


def test_actions_become_bits_as_published():
    for low, high in ((2, 8), (1, 8), (4, 6)):
        for action in (0.0, 0.1, 0.25, 0.5, 0.77, 1.0):
            plain = round(low - 0.5 + action * (high - low + 1))  # ties to even, as NumPy
            plain = min(max(plain, low), high)
            found = env.to_bits(jnp.float32(action), jnp.int32(low), jnp.int32(high))
            assert found == plain, (low, high, action)


def test_each_bitwidth_has_an_equal_share_of_actions():
    actions = jnp.linspace(0, 1, 7001)
    bits = np.asarray(env.to_bits(actions, jnp.int32(2), jnp.int32(8)))
    counts = np.bincount(bits)[2:]
    np.testing.assert_allclose(counts / counts.sum(), 1 / 7, atol=2e-3)


def test_features_are_scaled_over_the_layers():
    layers = env.describe(convs(4), range(4))
    features = np.asarray(layers.features)
    assert features.shape == (4, 8)
    np.testing.assert_array_equal(features[:, 0], [0, 1, 0, 0])  # depthwise
    np.testing.assert_allclose(features[:, 1], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)  # channels read
    assert features[3, 3] == 0, "the stride of a layer that reads one pixel counts as 0"
    np.testing.assert_allclose(features[:, 7], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    assert features.min() == 0
    assert features.max() == 1


def test_pinned_layers_and_what_reads_the_same_keep_their_bits():
    layers = env.describe(convs(5), [0, 1, 0, 3, 4])
    least = np.asarray(layers.least)
    assert least[[0, 4]].tolist() == [[8, 8], [8, 8]]
    assert least[2].tolist() == [2, 8], "it reads what the first layer reads"
    assert least[[1, 3]].tolist() == [[2, 2], [2, 2]]


def test_an_episode_has_a_step_for_what_is_chosen():
    both = env.describe(convs(5), range(5))
    weights = env.describe(convs(5), range(5), (1, 8), (True, False), pinned=())
    assert np.asarray(both.slots).tolist() == list(range(10))
    assert np.asarray(weights.slots).tolist() == [0, 2, 4, 6, 8]
    how, world = ddpg.DDPG(hidden=(8, 8)), world_of(weights, np.random.default_rng(0), 1.0)
    agent = ddpg.init(jax.random.PRNGKey(0), how, 5, env.FEATURES)
    episode = env.propose(how, weights, agent, world)
    assert episode.states.shape == (5, env.FEATURES)
    assert (np.asarray(episode.bits)[:, 1] == 8).all()
    assert np.asarray(episode.bits)[:, 0].min() >= 1


def test_a_state_has_the_layer_the_last_bits_and_the_kind():
    layers = env.describe(convs(4), range(4))
    world = world_of(layers, np.random.default_rng(0), 1.0)
    how = ddpg.DDPG(hidden=(8, 8))
    agent = ddpg.init(jax.random.PRNGKey(3), how, 8, env.FEATURES)
    episode = env.propose(how, layers, agent, world)
    states, actions = np.asarray(episode.states), np.asarray(episode.actions)
    np.testing.assert_array_equal(states[:, :8], np.repeat(np.asarray(layers.features), 2, 0))
    np.testing.assert_array_equal(states[:, 9], [0, 1] * 4)
    bits = np.asarray(env.to_bits(jnp.asarray(actions), jnp.int32(2), jnp.int32(8)))
    np.testing.assert_allclose(states[1:, 8], bits[:-1] / 8)
    assert states[0, 8] == 1


def test_the_reward_is_a_tenth_of_the_lost_points():
    found = env.reward_of(jnp.array([71.0, 65.5]), 70.5)
    np.testing.assert_allclose(found, [0.05, -0.5], rtol=1e-5)


def test_an_order_leaves_out_what_is_not_chosen():
    layers = env.describe(convs(3), range(3), (1, 8), (True, False), pinned=())
    world = agents.worlds(layers, [np.ones((3, 9, 9))] * 2, [1.0, 2.0])
    assert np.asarray(world.order).tolist() == [[4, 2, 0]] * 2, "from the last layer on"
    ordered = agents.ordered(world, layers, np.array([3, 2, 5, 0, 1, 4]))
    assert np.asarray(ordered.order).tolist() == [[2, 0, 4]] * 2


def test_the_first_episode_proposes_the_most_bits():
    how = ddpg.DDPG(hidden=(6, 5), warmup=2)
    layers = env.describe(convs(6), range(6))
    world = world_of(layers, np.random.default_rng(3))
    agent = ddpg.init(jax.random.PRNGKey(0), how, len(layers.slots), env.FEATURES)
    free = world._replace(budget=jnp.float32(np.inf))
    first = env.propose(how, layers, agent, free)
    np.testing.assert_array_equal(first.bits, layers.most)
    np.testing.assert_array_equal(first.actions, np.ones(len(layers.slots)))
    later = env.propose(how, layers, agent._replace(episodes=jnp.int32(1)), free)
    assert (np.asarray(later.bits) < np.asarray(layers.most)).any()
