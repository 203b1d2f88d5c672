"""Learned steps, against the paper's formulas in NumPy and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import affine, lsq

RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (3, 3, 4, 5)).astype(np.float32)
STEP = RNG.uniform(0.1, 0.5, 5).astype(np.float32)
G = RNG.normal(0, 1, W.shape).astype(np.float32)  # what comes from behind


def by_hand(w, step, low, high, n):
    """Eq. 1 to 3 and the gradient scale; values, and what the step's slope is at each value."""
    v = w.astype(np.float64) / step
    codes = np.rint(np.clip(v, low, high))
    slope = np.where(v <= low, low, np.where(v >= high, high, np.rint(v) - v))
    return codes * step, slope / np.sqrt(n * high)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_those_of_the_paper(bits):
    high = 2 ** (bits - 1) - 1
    values, slope = by_hand(W, STEP, -high, high, W.size // 5)
    found, back = jax.vjp(
        lambda w, s: lsq.fake_quant_weight(w, s, jnp.int32(bits)), jnp.asarray(W), jnp.asarray(STEP)
    )
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
    of_w, of_step = back(jnp.asarray(G))
    inside = np.abs(np.rint(W / STEP)) <= high
    np.testing.assert_array_equal(of_w, np.where(inside, G, 0))
    # Between the last code and half a step beyond it, the paper clips and we round.
    edge = (np.abs(W / STEP) > high) & inside
    assert edge.mean() < 0.1
    slope = np.where(edge, (np.rint(W / STEP) - W / STEP) / np.sqrt(W.size // 5 * high), slope)
    expected = (slope * G).sum((0, 1, 2))
    np.testing.assert_allclose(of_step, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_those_of_the_grid_bit_for_bit(bits):
    b, snap = jnp.int32(bits), jax.jit(affine.snap)
    w, step, high = jnp.asarray(W), jnp.asarray(STEP), jnp.float32(2 ** (bits - 1) - 1)
    expected = snap(w, step, jnp.float32(0), -high, high)
    np.testing.assert_array_equal(lsq.fake_quant_weight(w, step, b), expected)
    range_ = lsq.range_of(jnp.float32(0.31), jnp.float32(1), b)
    np.testing.assert_array_equal(lsq.fake_quant(w, range_, b), affine.fake_quant(w, range_, b))
    scale, zero_point, most = affine.asymmetric_grid(range_, b)
    assert (zero_point, most) == (1, 2**bits - 1)
    assert float(scale) == pytest.approx(0.31, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_step_has_the_slope_of_finite_differences(bits):
    """Of the function in which the distance to the nearest code is a constant."""
    step, zero_point, high = 0.37, 1.0, 2**bits - 1
    x = RNG.normal(0.3, 1, 200)
    codes = np.rint(x / step)
    inside = (codes >= -zero_point) & (codes <= high - zero_point)
    rest = codes - x / step

    def loss(step):
        v = np.where(inside, x / step + rest, np.clip(codes, -zero_point, high - zero_point))
        return np.sum(np.sin(step * v))

    numeric = (loss(step + 1e-6) - loss(step - 1e-6)) / 2e-6 / np.sqrt(200 * high)

    def total(step):
        range_ = lsq.range_of(step, jnp.float32(zero_point), jnp.int32(bits))
        return jnp.sum(
            jnp.sin(lsq.fake_quant(jnp.asarray(x, jnp.float32), range_, jnp.int32(bits)))
        )

    found = jax.grad(total)(jnp.float32(step))
    assert float(found) == pytest.approx(numeric, rel=1e-3)


def test_bitwidths_are_traced_and_mapped():
    bits = jnp.array([2, 4, 8])
    found = jax.vmap(lambda b: lsq.fake_quant_weight(jnp.asarray(W), jnp.asarray(STEP), b))(bits)
    for one, b in zip(found, bits, strict=True):
        expected = lsq.fake_quant_weight(jnp.asarray(W), jnp.asarray(STEP), b)
        np.testing.assert_array_equal(one, expected)


def test_learned_steps_have_less_error_than_those_of_the_largest_weight():
    w, bits = jnp.asarray(RNG.normal(0, 1, (512, 8)), jnp.float32), jnp.int32(3)

    def error(step):
        return jnp.mean(jnp.square(lsq.fake_quant_weight(w, step, bits) - w))

    step = affine.weight_codes(w, bits)[1]
    plain = float(jnp.mean(jnp.square(affine.fake_quant_weight(w, bits) - w)))
    slope = jax.jit(jax.grad(error))
    for _ in range(200):
        step = step - 10.0 * slope(step)
    assert float(error(step)) < 0.6 * plain
