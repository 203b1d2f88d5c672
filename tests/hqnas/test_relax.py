"""Probabilities, their gradients and the controller, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.hqnas import relax
from qnas_jax.hqnas.shared import Shared, Shares
from qnas_jax.space import Op

SHAPE = (3, 4, 2, 2)  # layers, ops, bits of weights and of activations


@pytest.fixture
def logits():
    keys = jax.random.split(jax.random.key(0), 3)
    layers, ops, bits, _ = SHAPE
    pairs = zip(keys, (ops, bits, bits), strict=True)
    return Shares(*(jax.random.normal(key, (layers, count)) for key, count in pairs))


@pytest.fixture
def costs():
    layers = jax.random.uniform(jax.random.key(1), SHAPE)
    return relax.Costs(layers, jnp.float32(0.5), jnp.float32(1.5))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(logits, costs):
    """The mean cost over all networks, one after another, in float64."""
    op, w, a = (softmax(np.asarray(x, np.float64)) for x in logits)
    total = float(costs.fixed)
    for layer, o, i, j in np.ndindex(SHAPE):
        total += op[layer, o] * w[layer, i] * a[layer, j] * float(costs.layers[layer, o, i, j])
    return total


def test_a_search_begins_with_the_most_bits():
    described = Shared((Op(3, 3), Op(5, 3)), (8, 2, 4), ("a", "b"), (2,), {})
    logits = relax.first(described, 2.0)
    np.testing.assert_array_equal(logits.op, np.zeros((2, 2)))
    np.testing.assert_allclose(logits.w, [[2, 0, 1]] * 2)
    np.testing.assert_allclose(logits.a, logits.w)
    alone = Shared((Op(3, 3),), (8,), ("a",), (1,), {})
    np.testing.assert_array_equal(relax.first(alone, 2.0).w, [[0]])


def test_the_expected_cost_is_the_sum_over_all_candidates(logits, costs):
    found = relax.expected_cost(relax.probabilities(logits), costs)
    np.testing.assert_allclose(found, by_hand(logits, costs), rtol=1e-5)


def test_its_gradient_equals_finite_differences(logits, costs):
    found = jax.grad(lambda x: relax.expected_cost(relax.probabilities(x), costs))(logits)
    step = 1e-4
    for part in range(3):
        arrays = [np.asarray(x, np.float64) for x in logits]
        for place in np.ndindex(arrays[part].shape):
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in arrays]
                moved[part][place] += sign * step
                ends.append(by_hand(Shares(*moved), costs))
            expected = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(found[part][place], expected, rtol=1e-4, atol=1e-6)


def test_draws_follow_the_probabilities(logits):
    count = 4000
    found = relax.draws(logits, jax.random.key(2), count)
    for drawn, expected in zip(found, relax.probabilities(logits), strict=True):
        assert set(np.unique(drawn)) <= {0.0, 1.0}
        np.testing.assert_array_equal(drawn.sum(-1), np.ones(drawn.shape[:-1]))
        spread = 4 * np.sqrt(expected * (1 - expected) / count)
        assert (np.abs(drawn.mean(0) - expected) < spread + 1e-3).all()


def test_a_draw_has_the_gradient_of_the_relaxed_one(logits):
    key, temperature = jax.random.key(3), jnp.float32(0.7)
    target = jax.tree.map(lambda x: jax.random.normal(key, x.shape), logits)

    def loss(x):
        drawn = relax.sample(x, key, temperature)
        return sum(jnp.vdot(a, b) for a, b in zip(drawn, target, strict=True))

    found = jax.grad(loss)(logits)
    for x, t, k, g in zip(logits, target, jax.random.split(key, 3), found, strict=True):
        noisy = np.asarray(x + jax.random.gumbel(k, x.shape), np.float64) / 0.7
        p, t = softmax(noisy), np.asarray(t, np.float64)
        expected = p * (t - (p * t).sum(-1, keepdims=True)) / 0.7
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)


def test_the_controller_brings_the_cost_to_its_budget(costs):
    """All else equal, the loss prefers the dearest candidates; the budget must hold anyway."""
    bounds = {"latency_ms": costs}
    logits = Shares(*(jnp.zeros((SHAPE[0], n)) for n in SHAPE[1:]))
    weights = {"latency_ms": jnp.float32(0)}

    @jax.jit
    def step(logits, weights):
        def loss(x):
            p = relax.probabilities(x)
            return -relax.expected_cost(p, costs) + relax.penalty(p, bounds, weights)

        logits = jax.tree.map(lambda x, g: x - 0.5 * g, logits, jax.grad(loss)(logits))
        over = relax.excess(relax.probabilities(logits), bounds)
        return logits, relax.controlled(weights, over, 0.05, 20.0)

    for _ in range(1500):
        logits, weights = step(logits, weights)
    over = relax.excess(relax.probabilities(logits), bounds)["latency_ms"]
    assert abs(float(over)) < 0.1
    assert 0 < float(weights["latency_ms"]) < 20


def test_weights_stay_within_their_bounds():
    weights = {"a": jnp.float32(0.1), "b": jnp.float32(9.9)}
    over = {"a": jnp.float32(-1), "b": jnp.float32(1)}
    found = relax.controlled(weights, over, 1.0, 10.0)
    assert (float(found["a"]), float(found["b"])) == (0, 10)
