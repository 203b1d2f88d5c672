"""What a policy does to a network, against NumPy by hand; DeepLabV3 has all kinds of units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_haq
import small_network
from qnas_jax.nn import init, policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import ranges
from qnas_jax.stages import quantizers

CASE = small_network.make_case(small_network.INT8)
CASE = CASE._replace(variables=jax.tree.map(jnp.asarray, CASE.variables))
TRACED = trace(CASE.model, small_network.SHAPE)
NAMES = [conv.name for conv in TRACED.convs]


@functools.cache
def linear(ranges="min_max"):
    return quantizers.linear(CASE.model, TRACED, CASE.variables, CASE.quant, [CASE.images], ranges)


def bits_of(w=8, a=8):
    return jnp.tile(jnp.array([w, a], jnp.int32), (len(NAMES), 1))


def test_layers_that_read_the_same_tensor_follow_the_first():
    lead = quantizers.lead_of(TRACED)
    readers = {}
    for unit in TRACED.units:
        if unit.conv:
            readers.setdefault(unit.inputs[0], []).append(NAMES.index(unit.name))
    shared = [numbers for numbers in readers.values() if len(numbers) > 1]
    assert shared, "the head's branches read the same features"
    for numbers in readers.values():
        assert (lead[numbers] == min(numbers)).all()


def test_a_policy_by_units_has_the_bits_that_readers_ask_for():
    bits = np.arange(2 * len(NAMES)).reshape(-1, 2)
    bits[:, 1] = bits[quantizers.lead_of(TRACED), 1]
    found = quantizers.unit_policy(TRACED, bits)
    units = {unit.name: unit for unit in TRACED.units}
    for number, name in enumerate(NAMES):
        assert found[name][0] == bits[number, 0]
        read = units[units[name].inputs[0]]
        while not read.has_grid:
            read = units[read.inputs[0]]
        assert found[read.name][1] == bits[number, 1]
    read_by_convs = set(quantizers.grid_of(TRACED).values())
    for name in set(found) - read_by_convs:
        assert found[name][1] == 8, name


def test_with_min_max_ranges_a_policy_is_the_usual_one():
    found = jax.jit(linear())(CASE.variables["params"], bits_of(4, 8))
    for name in NAMES:
        w = policy.at(CASE.variables["params"], name)["kernel"]
        np.testing.assert_array_equal(policy.at(found["params"], name)["kernel"], w)
        assert policy.at(found["quant"], name)["w_bits"] == 4
    float_ranges = CASE.model.apply(
        CASE.variables, pixels(jnp.asarray(CASE.images)), capture_intermediates=True,
        mutable=["intermediates"],
    )[1]["intermediates"]  # fmt: skip
    for unit in ranges.grids(TRACED):
        x = policy.at(float_ranges, unit.name)["__call__"][0]
        range_ = policy.output_at(found["quant"], unit.name)["range"]
        np.testing.assert_allclose(range_, [x.min(), x.max()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("w_bits", [2, 3, 5])
def test_clipped_weights_are_on_the_grid_by_hand(w_bits):
    quantize = linear("mse")
    found = quantize(CASE.variables["params"], bits_of(w_bits))
    for name in (NAMES[0], NAMES[2], NAMES[-1]):
        w = np.asarray(policy.at(CASE.variables["params"], name)["kernel"], np.float64)
        absmax = np.abs(w).max((0, 1, 2))
        absmax = np.where(absmax > 0, absmax, 1)
        errors = {}
        for share in np.arange(1, 21) / 20:
            scale = share / (2 ** (w_bits - 1) - 1)
            x = w / absmax
            codes = np.clip(np.round(x / scale), -(2 ** (w_bits - 1) - 1), 2 ** (w_bits - 1) - 1)
            errors[share] = np.mean((codes * scale - x) ** 2)
        best = min(errors.values())
        clipped = np.asarray(policy.at(found["params"], name)["kernel"], np.float64)
        share = (np.abs(clipped).max((0, 1, 2)) / np.abs(w).max((0, 1, 2))).max()
        chosen = min(errors, key=lambda s: abs(s - share))
        # The search looks at some of the weights, so the best of all may be a neighbour.
        assert errors[chosen] <= 1.05 * best, (name, share)
        np.testing.assert_allclose(clipped, np.clip(w, -share * absmax, share * absmax), rtol=1e-5)


def test_shared_weights_have_as_many_values_as_centres():
    model = small_haq.Small(12)
    traced = trace(model, (32, 32, 3))
    params = init.initialize(model, jax.random.key(0), (1, 32, 32, 3))["params"]
    quantize = jax.jit(quantizers.shared(traced, params))
    for w_bits in (1, 3, 8):
        bits = jnp.tile(jnp.array([w_bits, 8], jnp.int32), (len(traced.convs), 1))
        found = quantize(params, bits)
        assert set(found) == {"params"}, "activations stay in float"
        for conv in traced.convs:
            w = np.asarray(policy.at(params, conv.name)["kernel"])
            values = np.unique(np.asarray(policy.at(found["params"], conv.name)["kernel"]))
            assert len(values) <= min(2**w_bits, len(np.unique(w)))
            assert len(values) > 2 ** (w_bits - 1) or w.size < 2**w_bits
    assert quantize._cache_size() == 1
