"""Adaptive rounding: against brute force over all roundings, and against nearest rounding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_network
from qnas_jax.nn import policy
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import ranges, rounding
from qnas_jax.quant import affine

CASE = small_network.make_case(small_network.INT8)
CASE = CASE._replace(variables=jax.tree.map(jnp.asarray, CASE.variables))
TRACED = trace(CASE.model, small_network.SHAPE)


def test_one_layer_is_rounded_as_brute_force_rounds_it():
    """A linear layer of 8 weights that reads related channels: 128 roundings beside the largest."""
    rng = np.random.default_rng(0)
    layer = ConvBnAct(1, norm=False, bounds=LINEAR, grid=False)
    x = rng.normal(0, 1, (64, 2, 2, 8)) + rng.normal(0, 2, (64, 2, 2, 1))
    x = jnp.asarray(x, jnp.float32)
    better = 0
    for seed in range(8):
        w = jnp.asarray(np.random.default_rng(seed).normal(0, 1, (1, 1, 8, 1)), jnp.float32)
        read = {"params": {"kernel": w, "bias": jnp.zeros(1)}, "batch_stats": {}}
        y = layer.apply(read, x)
        found, nearest, adaptive = rounding._fitted(
            layer, 400, read, x, y, jnp.int32(3), None, jax.random.key(0)
        )
        scale = np.abs(w).max() / 3
        low = np.floor(np.asarray(w).ravel() / scale)
        top = np.abs(w).ravel().argmax()
        flat = np.asarray(x, np.float64).reshape(-1, 8)
        errors = []
        for ups in itertools.product((0, 1), repeat=8):
            codes = np.clip(low + ups, -3, 3)
            codes[top] = np.sign(np.asarray(w).ravel()[top]) * 3
            difference = flat @ (codes * scale - np.asarray(w, np.float64).ravel())
            errors.append(np.mean(difference**2))
        kept = np.asarray(found, np.float64).ravel()
        own = np.mean((flat @ (kept - np.asarray(w, np.float64).ravel())) ** 2)
        assert own == pytest.approx(float(adaptive), rel=1e-3)
        assert float(adaptive) <= float(nearest)
        assert float(adaptive) <= 1.1 * min(errors)
        better += float(adaptive) < 0.7 * float(nearest)
    assert better >= 2


@pytest.fixture(scope="module")
def four_bits():
    bits = {unit.name: (4, 8) for unit in TRACED.units if unit.has_grid or unit.conv}
    quant = policy.with_policy(CASE.quant, bits)
    found = ranges.ranges_of(CASE.model, TRACED, CASE.variables, [CASE.images], "mse")
    quant = ranges.with_ranges(quant, bits, found)
    params, errors = rounding.rounded(
        TRACED, CASE.variables, quant, CASE.images, 100, jax.random.key(0), CASE.variables
    )
    return quant, params, errors


@pytest.mark.slow
def test_every_weight_goes_to_one_of_its_two_neighbours(four_bits):
    quant, params, _ = four_bits
    for conv in TRACED.convs:
        w, new = (policy.at(p, conv.name)["kernel"] for p in (CASE.variables["params"], params))
        bits = policy.at(quant, conv.name)["w_bits"]
        scale = np.asarray(affine.weight_codes(w, bits)[1])
        codes = np.asarray(new) / scale
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(np.rint(codes) - np.asarray(w) / scale).max() < 1 + 1e-4
        again, same = affine.weight_codes(new, bits)  # as its file will have it
        np.testing.assert_allclose(same, scale, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(again), np.rint(codes))


@pytest.mark.slow
def test_the_network_has_less_error_than_with_nearest_rounding(four_bits):
    quant, params, errors = four_bits
    run = jax.jit(CASE.model.apply)
    images = pixels(jnp.asarray(CASE.images))
    target = run(CASE.variables, images)

    def error(params):
        found = run({**CASE.variables, "params": params, "quant": quant}, images)
        return float(jnp.mean(jnp.square(found - target)))

    assert error(params) < 0.9 * error(CASE.variables["params"])
    assert set(errors) == {conv.name for conv in TRACED.convs}
    assert all(one.adaptive <= one.nearest for one in errors.values())
    assert sum(one.adaptive < 0.9 * one.nearest for one in errors.values()) > len(errors) / 2
