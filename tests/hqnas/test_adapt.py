"""Adaptation on cached scores, against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.hqnas import adapt, relax
from qnas_jax.hqnas.shared import Shares

COUNTS = (3, 2, 2)
LAYERS = 2


def additive(table):
    """A loss that is a sum over layers and kinds of choices."""

    def losses(networks):
        return np.array([
            sum(table[part][layer, n[layer, part]] for part in range(3) for layer in range(LAYERS))
            for n in networks
        ])  # fmt: skip

    return losses


def case(seed):
    rng = np.random.default_rng(seed)
    table = [np.sort(rng.uniform(0, 1, (LAYERS, count)), 1)[:, ::-1] for count in COUNTS]
    cost = rng.uniform(0.5, 1, (LAYERS, *COUNTS)).cumsum(1).cumsum(2).cumsum(3)
    return table, cost


def every_network():
    for flat in itertools.product(*(range(count) for count in COUNTS * LAYERS)):
        yield np.array(flat, np.uint8).reshape(LAYERS, 3)


def spent(cost, network):
    return sum(cost[(layer, *network[layer])] for layer in range(LAYERS))


def test_sensitivities_of_a_sum_are_its_terms():
    table, _ = case(0)
    found = np.array([[1, 0, 1], [2, 1, 0]], np.uint8)
    added = adapt.sensitivities(additive(table), found, COUNTS)
    for part in range(3):
        own = table[part][np.arange(LAYERS), found[:, part]]
        np.testing.assert_allclose(added[part], table[part] - own[:, None], atol=1e-6)


def test_the_adapted_network_is_near_the_best_within_its_budget():
    losses, bests = [], []
    for seed in range(5):
        table, cost = case(seed)
        costs = [spent(cost, n) for n in every_network()]
        budget = float(np.quantile(costs, 0.5))
        found = np.zeros((LAYERS, 3), np.uint8)
        added = adapt.sensitivities(additive(table), found, COUNTS)
        bounds = {"latency_ms": relax.Costs(
            jnp.asarray(cost, jnp.float32), jnp.float32(0), jnp.float32(budget)
        )}  # fmt: skip
        start = Shares(*(jnp.zeros((LAYERS, count)) for count in COUNTS))
        logits = adapt.adapted(start, added, bounds, {}, jnp.float32(20))
        over = relax.excess(relax.probabilities(logits), bounds)["latency_ms"]
        assert float(over) < 0.03
        network = np.stack([np.argmax(x, 1) for x in logits], 1).astype(np.uint8)
        loss_of = additive(table)
        allowed = [n for n in every_network() if spent(cost, n) <= budget]
        losses.append(float(loss_of([network])[0]))
        bests.append(float(loss_of(allowed).min()))
        worst = float(loss_of(allowed).max())
        assert losses[-1] <= bests[-1] + 0.25 * (worst - bests[-1])
    assert np.mean(losses) < np.mean(bests) + 0.3


def test_a_higher_price_never_buys_more():
    table, cost = case(7)
    added = adapt.sensitivities(additive(table), np.zeros((LAYERS, 3), np.uint8), COUNTS)
    bounds = {
        "energy_mj": relax.Costs(jnp.asarray(cost, jnp.float32), jnp.float32(0), jnp.float32(5))
    }
    start = Shares(*(jax.random.normal(jax.random.key(0), (LAYERS, n)) * 9 for n in COUNTS))
    found = []
    for price in (0.0, 0.2, 1.0, 5.0):
        prices = {"energy_mj": jnp.float32(price)}
        logits = adapt.adapted(start, added, bounds, prices, jnp.float32(20))
        shares = relax.most_likely(logits)
        found.append(float(relax.expected_cost(shares, bounds["energy_mj"])))
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]
