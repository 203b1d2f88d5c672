"""Subnets as genes, and their costs against those of the subnets themselves."""

import itertools

import numpy as np
import pytest

from qnas_jax import hardware, space
from qnas_jax.errors import InputError
from qnas_jax.hardware import candidates, matrix
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.oneshot import coding
from small_oneshot import BLOCKS, OPS, SPACE

BITS = ((4, 6), (8, 8))
STEM = [space.Conv("stem", 3, 2, 1, 1, 3, 4, 20, 20)]
HEAD = [space.Conv("classifier", 1, 1, 1, 1, 8, 3, 1, 1)]


def deployed(name="bismo_edge", **changes):
    where = candidates.places(BLOCKS, (10, 10))
    device = hardware.named(name)
    costs = {**device.costs, **changes}
    device = hardware.Target(device.name, costs=costs)
    return Deployment(device, where, {"stem": STEM, "head": HEAD})


def coded(per_layer):
    return coding.Coding(SPACE, BITS, per_layer)


def all_genes(one):
    return np.array(list(itertools.product(*(range(n + 1) for n in coding.most(one)))))


@pytest.mark.parametrize("per_layer", [False, True])
def test_genes_are_all_subnets_each_once(per_layer):
    one = coded(per_layer)
    genes = all_genes(one)
    assert genes.shape[1] == len(coding.least(one)) == (6 if per_layer else 5)
    subnets = coding.subnets_at(one, genes)
    choices = [space.Choice(op, *pair) for op in OPS for pair in BITS]
    expected = {
        (path[:2], path[2:])
        for path in itertools.product(choices, repeat=3)
        if per_layer or path[0][1:] == path[1][1:]
    }
    assert len(subnets) == len(set(subnets)) == len(expected)
    assert set(subnets) == expected


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("name", ["size_bytes", "latency_ms"])
def test_costs_are_those_of_the_subnets(per_layer, name):
    one, device = coded(per_layer), deployed()
    costs, genes = coding.known_costs(device, one)[name], all_genes(one)
    found = coding.costs_of(one, costs, genes)
    known, fixed = device.matrix(OPS, BITS), sum(device.fixed()[name].values())
    expected = [
        matrix.subnet_costs(known, OPS, BITS, subnet)[name] + fixed
        for subnet in coding.subnets_at(one, genes)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    cheapest = coding.cheapest(one, costs, name)
    assert coding.costs_of(one, costs, cheapest[None])[0] == pytest.approx(min(expected))


def _lacks(op):
    """A latency of 1 ms, without an op at 4 bits."""

    def cost(candidate, w_bits, a_bits):
        return np.where((candidate.op == op) & (w_bits == 4), np.nan, 1.0)

    return cost


def test_what_the_target_lacks_costs_infinitely_much():
    one, device = coded(False), deployed(latency_ms=_lacks(OPS[1]))
    costs, genes = coding.known_costs(device, one), all_genes(one)
    lacking = np.array(
        [
            any(c.op == OPS[1] and c.w_bits == 4 for block in subnet for c in block)
            for subnet in coding.subnets_at(one, genes)
        ]
    )
    for name in ("size_bytes", "latency_ms"):
        assert (np.isinf(coding.costs_of(one, costs[name], genes)) == lacking).all()


def test_a_target_that_runs_no_subnet_is_refused():
    def cost(candidate, w_bits, a_bits):
        last = candidate.op is not None and candidate.place == "block2/layer0"
        return np.full(len(w_bits), np.nan if last else 1.0)

    one = coded(False)
    costs = coding.known_costs(deployed(latency_ms=cost), one)["latency_ms"]
    with pytest.raises(InputError, match="runs no subnet of the space"):
        coding.cheapest(one, costs, "latency_ms")
