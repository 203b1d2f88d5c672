"""Subnets within a budget, against brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hqnas import derive, relax
from qnas_jax.hqnas.shared import Shared
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
                found = derive.within(DESCRIBED, subnet, costs)
                spent = derive.cost_of(DESCRIBED, found, costs)
                assert spent <= budget * (1 + 1e-5)
                if derive.cost_of(DESCRIBED, subnet, costs) <= budget:
                    assert found == subnet


def test_a_budget_that_none_meets_is_refused():
    costs = costs_of(np.ones((2, 2, 2, 2)), 2.9)
    with pytest.raises(InputError, match=r"no subnet meets the budget 2.9"):
        derive.within(DESCRIBED, every_subnet()[-1], costs)
