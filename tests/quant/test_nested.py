"""Weights of all bitwidths in one tensor, against integers and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import affine, calibrate, nested

module = __import__("qnas_jax.quant.nested", fromlist=["nested"])
BITS = (2, 3, 4, 5, 6, 7, 8)
EVERY_CODE = np.arange(-127, 128)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_shifted_integers_bit_for_bit(bits):
    found = module.leading_codes(jnp.asarray(EVERY_CODE), jnp.int32(bits))
    most = 2 ** (bits - 1) - 1
    half = 2 ** (7 - bits) if bits < 8 else 0
    expected = [max(-most, min(most, (int(code) + half) >> (8 - bits))) for code in EVERY_CODE]
    np.testing.assert_array_equal(found, expected)


def test_codes_of_fewer_bits_come_from_any_larger_code():
    """Leading bits of leading bits, but for the half that rounding adds."""
    codes = EVERY_CODE + 128  # as a memory holds them, without a sign
    for bits in BITS:
        leading = codes >> (8 - bits)
        np.testing.assert_array_equal(leading, (codes >> 1) >> (7 - bits) if bits < 8 else codes)


@pytest.mark.parametrize("bits", BITS)
def test_values_are_on_the_grid_that_export_finds(bits):
    w = jax.random.normal(jax.random.key(bits), (3, 3, 4, 7))
    values = nested(w, jnp.int32(bits))
    scale = np.abs(np.asarray(w, np.float64)).max((0, 1, 2)) / 127
    codes = np.rint(np.asarray(w, np.float64) / scale)
    by_hand = module.leading_codes(jnp.asarray(codes, jnp.int32), jnp.int32(bits))
    np.testing.assert_allclose(values, np.asarray(by_hand) * scale * 2.0 ** (8 - bits), rtol=1e-5)
    again = affine.fake_quant_weight(values, jnp.int32(bits))
    np.testing.assert_allclose(again, values, rtol=1e-6, atol=1e-7)
    if bits == 8:
        np.testing.assert_allclose(
            values, affine.fake_quant_weight(w, jnp.int32(8)), rtol=1e-6, atol=1e-7
        )


def test_bitwidths_are_data():
    w = jax.random.normal(jax.random.key(0), (1, 1, 16, 8))
    together = jax.vmap(nested, (None, 0))(w, jnp.array(BITS))
    for bits, found in zip(BITS, together, strict=True):
        np.testing.assert_array_equal(found, nested(w, jnp.int32(bits)))


def test_gradients_pass_through():
    w = jax.random.normal(jax.random.key(1), (1, 1, 4, 3))
    ones = jax.grad(lambda w: jnp.sum(nested(w, jnp.int32(3))))(w)
    np.testing.assert_array_equal(ones, np.ones_like(w))


def test_few_bits_have_less_error_than_on_the_full_range():
    """Of normal weights; of more bits more, as their codes are rounded twice."""
    w = jax.random.normal(jax.random.key(2), (1, 1, 512, 64))

    def error(rounded):
        return float(jnp.mean(jnp.square(rounded - w)))

    ratios = {
        bits: error(nested(w, jnp.int32(bits)))
        / error(affine.fake_quant_weight(w, jnp.int32(bits)))
        for bits in BITS
    }
    assert ratios[2] < 0.5
    assert ratios[2] < ratios[3] < ratios[4] < ratios[5] < 1
    assert 1 < ratios[6] < ratios[7] < 1.8


def test_a_mixture_of_one_is_that_bitwidth():
    bits = jnp.array([2, 4, 8])
    x = jax.random.normal(jax.random.key(3), (2, 4, 4, 3))
    w = jax.random.normal(jax.random.key(4), (1, 1, 8, 5))
    whole = calibrate.min_max(x, jnp.int32(8))
    for place, b in enumerate(bits):
        shares = jax.nn.one_hot(place, 3)
        np.testing.assert_array_equal(module.mixed_weights(w, shares, bits), nested(w, b))
        expected = affine.fake_quant(x, whole * module.SHARES[int(b)], b)
        np.testing.assert_array_equal(module.mixed_activations(x, shares, bits), expected)


def test_a_choice_is_a_mixture_of_one_with_the_same_gradients():
    bits = jnp.array([8, 2, 3, 4])
    x = jax.nn.relu(jax.random.normal(jax.random.key(3), (2, 6, 6, 3)))
    w = jax.random.normal(jax.random.key(4), (3, 3, 8, 5))
    for values, chosen, mixed in (
        (x, module.chosen_activations, module.mixed_activations),
        (w, module.chosen_weights, module.mixed_weights),
    ):
        target = jax.random.normal(jax.random.key(5), values.shape)
        for place in range(len(bits)):
            given = values, jax.nn.one_hot(place, len(bits))
            (found, back), (expected, wanted) = (
                jax.vjp(lambda v, s, of=of: of(v, s, bits), *given) for of in (chosen, mixed)
            )
            pairs = (found, *back(target)), (expected, *wanted(target))
            for one, other in zip(*pairs, strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_damping_pulls_weights_to_their_values():
    bits, shares = jnp.array([2, 4]), jnp.array([1.0, 0.0])
    w = jax.random.normal(jax.random.key(7), (1, 1, 8, 5))
    target = jax.random.normal(jax.random.key(8), w.shape)

    def loss(w, damping):
        return jnp.vdot(module.chosen_weights(w, shares, bits, damping), target)

    pulled = jax.grad(loss)(w, 0.3) - jax.grad(loss)(w, 0.0)
    values = nested(w, jnp.int32(2))
    np.testing.assert_allclose(pulled, 0.3 * (w - values), rtol=1e-4, atol=1e-6)


def test_shares_learn_what_each_bitwidth_would_give():
    bits = jnp.array([2, 4, 8])
    x = jax.random.normal(jax.random.key(5), (2, 4, 4, 3))
    target = jax.random.normal(jax.random.key(6), x.shape)

    def loss(shares):
        return jnp.vdot(module.mixed_activations(x, shares, bits), target)

    gradient = jax.grad(loss)(jnp.array([0.0, 1.0, 0.0]))
    alone = [loss(jax.nn.one_hot(place, 3)) for place in range(3)]
    np.testing.assert_allclose(gradient, alone, rtol=1e-4)


def test_ranges_are_those_of_the_least_error():
    values = jax.nn.relu(jnp.clip(jax.random.normal(jax.random.key(0), (4096,)), None, 6))
    for bits in (2, 3, 4, 5, 6, 8):
        found = calibrate.mse(values, jnp.int32(bits))[1] / jnp.max(values)
        assert float(found) == pytest.approx(module.SHARES[bits], abs=0.051)
