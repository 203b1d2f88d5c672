"""Subnets within a budget, against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hqnas import derive, relax
from qnas_jax.hqnas.shared import Shared, Shares, codes_of
from qnas_jax.space import Choice, Op

OPS, BITS = (Op(3, 3), Op(5, 6)), (2, 8)
DESCRIBED = Shared(OPS, BITS, ("a", "b"), (1, 1), {})


def costs_of(layers, budget, fixed=1.0):
    return relax.Costs(jnp.asarray(layers, jnp.float32), jnp.float32(fixed), jnp.float32(budget))


def every_subnet():
    choices = [Choice(*one) for one in itertools.product(OPS, BITS, BITS)]
    return [((a,), (b,)) for a, b in itertools.product(choices, repeat=2)]


def test_any_budget_that_some_subnet_meets_is_met():
    """Also where no single number of a layer can be lowered: costs here have no order."""
    for seed in range(20):
        layers = np.random.default_rng(seed).uniform(1, 2, (2, 2, 2, 2))
        lowest = 1 + layers.reshape(2, -1).min(1).sum()
        for subnet in every_subnet()[::7]:
            for budget in (lowest, lowest + 0.3, 9.0):
                costs = costs_of(layers, budget)
                found = derive.within(DESCRIBED, subnet, {"latency_ms": costs})
                spent = derive.cost_of(DESCRIBED, found, costs)
                assert spent <= budget * (1 + 1e-5)
                if derive.cost_of(DESCRIBED, subnet, costs) <= budget:
                    assert found == subnet


def test_a_budget_that_none_meets_is_refused():
    costs = {"latency_ms": costs_of(np.ones((2, 2, 2, 2)), 2.9)}
    with pytest.raises(InputError, match=r"no subnet meets the budgets: latency_ms 2.9"):
        derive.check(DESCRIBED, costs)
    assert derive.within(DESCRIBED, every_subnet()[-1], costs) is None


def test_budgets_that_only_hold_alone_are_refused():
    """The one cost asks for the first op, the other for the second."""
    layers = np.ones((2, 2, 2, 2))
    layers[:, 1] = 2
    bounds = {"latency_ms": costs_of(layers, 3.0), "energy_mj": costs_of(layers[:, ::-1], 3.0)}
    for name, one in bounds.items():
        derive.check(DESCRIBED, {name: one})
    with pytest.raises(InputError, match="latency_ms 3, energy_mj 3"):
        derive.check(DESCRIBED, bounds)


def ordered(rng):
    """Costs that rise with the op and the bits, as those of a device do."""
    return rng.uniform(0.5, 1, (2, 2, 2, 2)).cumsum(1).cumsum(2).cumsum(3)


def test_several_budgets_are_met_together():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        bounds = {}
        for name in ("latency_ms", "size_bytes"):
            layers = ordered(rng)
            lowest, highest = 1 + layers[:, 0, 0, 0].sum(), 1 + layers[:, -1, -1, -1].sum()
            bounds[name] = costs_of(layers, rng.uniform(lowest, highest))
        for subnet in every_subnet():
            found = derive.within(DESCRIBED, subnet, bounds)
            for one in bounds.values():
                assert derive.cost_of(DESCRIBED, found, one) <= float(one.budget) * (1 + 1e-5)


def added_scores(rng):
    return Shares(*(jnp.asarray(rng.uniform(-0.1, 1, (2, 2)), jnp.float32) for _ in range(3)))


def sum_of(added, subnet):
    codes = codes_of(DESCRIBED, subnet)
    return sum(
        float(added[part][layer, codes[layer, part]]) for part in range(3) for layer in (0, 1)
    )


def test_the_best_sum_is_that_of_brute_force():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        added = added_scores(rng)
        bounds = {name: costs_of(ordered(rng), 7.0) for name in ("latency_ms", "size_bytes")}
        fits = [
            subnet
            for subnet in every_subnet()
            if all(derive.cost_of(DESCRIBED, subnet, one) <= 7.0 for one in bounds.values())
        ]
        best = min(sum_of(added, subnet) for subnet in fits)
        found = derive.best_by_sum(DESCRIBED, added, bounds)
        assert found in fits
        assert sum_of(added, found) <= best + 2e-3 * (1 + abs(best))


def test_a_subnet_is_filled_up_with_the_bits_that_help_most():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        added = added_scores(rng)
        bounds = {"latency_ms": costs_of(ordered(rng), 6.0)}
        for subnet in every_subnet()[::5]:
            if derive.cost_of(DESCRIBED, subnet, bounds["latency_ms"]) > 6.0:
                continue
            codes = codes_of(DESCRIBED, subnet)
            larger = [
                other
                for other in every_subnet()
                if (codes_of(DESCRIBED, other)[:, 0] == codes[:, 0]).all()
                and (codes_of(DESCRIBED, other)[:, 1:] >= codes[:, 1:]).all()
                and derive.cost_of(DESCRIBED, other, bounds["latency_ms"]) <= 6.0
            ]
            found = derive.filled(DESCRIBED, subnet, added, bounds, derive.NO_PRICES)
            assert found in larger
            best = min(sum_of(added, other) for other in larger)
            assert sum_of(added, found) <= best + 2e-3 * (1 + abs(best))


def test_a_price_is_part_of_the_sum():
    rng = np.random.default_rng(3)
    added, bounds = added_scores(rng), {"energy_mj": costs_of(ordered(rng), 4.0)}

    def paid(subnet, price):
        cost = derive.cost_of(DESCRIBED, subnet, bounds["energy_mj"])
        return sum_of(added, subnet) + price * cost / 4.0

    for price in (0.0, 0.3, 2.0):
        prices = {"energy_mj": jnp.float32(price)}
        found = derive.best_by_sum(DESCRIBED, added, bounds, prices)
        best = min(paid(subnet, price) for subnet in every_subnet())
        assert abs(paid(found, price) - best) < 1e-5


def test_a_choice_that_is_not_allowed_is_not_taken():
    added = Shares(*(jnp.zeros((2, 2)) for _ in range(3)))
    fixed = added._replace(op=jnp.array([[jnp.inf, 0.0]] * 2))
    bounds = {"latency_ms": costs_of(ordered(np.random.default_rng(0)), 99.0)}
    found = derive.best_by_sum(DESCRIBED, fixed, bounds)
    assert {choice.op for block in found for choice in block} == {OPS[1]}


def test_a_local_search_finds_what_no_single_change_shows():
    """The loss is a sum of products of two layers' choices; brute force knows the best."""
    found_best = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        table = rng.uniform(0, 1, (8, 8))
        bounds = {"latency_ms": costs_of(ordered(rng), 6.5)}

        def losses(codes, table=table):
            numbers = (codes * [4, 2, 1]).sum(2)
            return table[numbers[:, 0], numbers[:, 1]]

        def loss(subnet, losses=losses):
            return float(losses(codes_of(DESCRIBED, subnet)[None])[0])

        fits = [
            subnet
            for subnet in every_subnet()
            if derive.cost_of(DESCRIBED, subnet, bounds["latency_ms"]) <= 6.5
        ]
        start, added = fits[rng.integers(len(fits))], added_scores(rng)
        calls = []

        def counted(codes, losses=losses, calls=calls):
            calls.append(len(codes))
            return losses(codes)

        key = jax.random.key(seed)
        found = derive.climbed(DESCRIBED, start, bounds, added, counted, key, 40)
        assert found in fits
        assert loss(found) <= loss(start)
        assert sum(calls) <= 40
        again = derive.climbed(DESCRIBED, start, bounds, added, losses, key, 40)
        assert again == found
        filled = {derive.filled(DESCRIBED, s, added, bounds, derive.NO_PRICES) for s in fits}
        found_best += loss(found) <= min(loss(s) for s in filled) + 1e-9
    assert found_best >= 8


@pytest.mark.parametrize("parts", [(0,), (1, 2)])
def test_a_local_search_changes_only_what_it_may(parts):
    """All else is not allowed, as where ops are searched first and bits then."""
    rng = np.random.default_rng(0)
    bounds = {"latency_ms": costs_of(ordered(rng), 5.5)}
    start = min(every_subnet(), key=lambda s: derive.cost_of(DESCRIBED, s, bounds["latency_ms"]))
    codes = codes_of(DESCRIBED, start)
    fixed = [part for part in range(3) if part not in parts]
    added = [
        jnp.where(np.arange(2) == codes[:, part][:, None], 0.0, np.inf) if part in fixed else one
        for part, one in enumerate(added_scores(rng))
    ]

    def losses(codes):
        return -codes.sum((1, 2)).astype(float)

    found = derive.climbed(
        DESCRIBED, start, bounds, Shares(*added), losses, jax.random.key(0), 40, parts=parts
    )
    assert (codes_of(DESCRIBED, found)[:, fixed] == codes[:, fixed]).all()
    assert found != start
    assert derive.cost_of(DESCRIBED, found, bounds["latency_ms"]) <= 5.5 * (1 + 1e-5)
