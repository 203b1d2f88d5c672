import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import affine, calibrate

BITS = jnp.int32(8)


def _values(shape, seed=0):
    """Heavy-tailed values, for which clipping helps."""
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5, 4)], ids=str)
def test_min_max_is_the_smallest_and_the_largest_value(shape):
    x = 3 + _values(shape)
    for bits in (2, 8):
        found = calibrate.min_max(jnp.asarray(x), jnp.int32(bits))
        np.testing.assert_array_equal(found, [x.min(), x.max()])


@pytest.mark.parametrize("name", calibrate.RANGES)
@pytest.mark.parametrize("shape", [(40_000,), (6, 18, 24, 8)], ids=str)
def test_a_range_of_values_with_nan_is_nan(name, shape):
    """On the CPU `jnp.max` of a vector of 40,000 values loses a NaN, and gives a finite range."""
    x = _values(shape)
    x.flat[5] = np.nan
    find = jax.jit(calibrate.RANGES[name])
    range_ = jax.jit(calibrate.hull)(jnp.zeros(2), find(x, BITS))
    np.testing.assert_array_equal(range_, [np.nan, np.nan])
    assert np.isnan(affine.fake_quant(jnp.asarray(x), range_, BITS)).all()


def test_percentile_clips_one_value_in_ten_thousand():
    x = _values((50, 40, 30))
    found = calibrate.percentile(jnp.asarray(x), BITS)
    np.testing.assert_allclose(found, np.quantile(x, [0.00005, 0.99995]), rtol=1e-5)
    clipped = np.sum((x < found[0]) | (x > found[1]))
    assert clipped == 60_000 // 10_000


def _squared_error(x, alpha, beta, bits):
    alpha, beta = min(alpha, 0.0), max(beta, 0.0)
    scale = (beta - alpha) / (2**bits - 1) or 1.0
    zero_point = np.rint(-alpha / scale)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1)
    return np.mean((scale * (codes - zero_point) - x) ** 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_mse_finds_the_fraction_with_the_smallest_error(bits, shift):
    x = np.maximum(_values((500,)) + shift, 0 if shift else -np.inf).astype(np.float32)
    whole = np.array([x.min(), x.max()], np.float64)
    errors = [_squared_error(np.float64(x), *(whole * n / 20), bits) for n in range(1, 21)]
    found = calibrate.mse(jnp.asarray(x), jnp.int32(bits))
    np.testing.assert_allclose(found, whole * (1 + np.argmin(errors)) / 20, rtol=1e-6)


def test_mse_clips_more_at_fewer_bits():
    x = jnp.asarray(_values((2000,)))
    widths = [np.ptp(calibrate.mse(x, jnp.int32(bits))) for bits in (2, 4, 8)]
    assert widths[0] < widths[1] < widths[2] <= np.ptp(calibrate.min_max(x, BITS))


@pytest.mark.parametrize("name", calibrate.RANGES)
def test_constants_keep_their_values(name):
    for constant in (0.0, -2.5, 40.0):
        x = jnp.full((3, 4), constant)
        range_ = calibrate.RANGES[name](x, BITS)
        # A product and a quotient, each of which rounds.
        np.testing.assert_allclose(affine.fake_quant(x, range_, BITS), x, rtol=3e-7)


@pytest.mark.parametrize("name", calibrate.RANGES)
def test_vmap_over_channels_and_bitwidths_equals_a_loop(name):
    find = calibrate.RANGES[name]
    x, bits = jnp.asarray(_values((40, 3)) * np.float32([1, 10, 0.1])), jnp.array([2, 4, 8])
    mapped = jax.vmap(jax.vmap(find, (-1, None)), (None, 0))(x, bits)
    for i, channel in itertools.product(range(3), range(3)):
        alone = find(x[:, channel], bits[i])
        np.testing.assert_allclose(mapped[i, channel], alone, rtol=1e-6)


def test_the_hull_of_batches_is_the_range_of_all_data():
    x = jnp.asarray(_values((3, 2, 4)))
    ranges = [calibrate.min_max(batch, BITS) for batch in x]
    for order in itertools.permutations(ranges):
        found = functools.reduce(calibrate.hull, order)
        np.testing.assert_array_equal(found, calibrate.min_max(x, BITS))


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ((-1.0, 2.0), (-3.0, 1.0), (-3.0, 2.0)),  # overlapping
        ((0.0, 1.0), (4.0, 5.0), (0.0, 5.0)),  # disjoint
        ((-9.0, 9.0), (-1.0, 1.0), (-9.0, 9.0)),  # one inside the other
        ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)),  # a constant
    ],
)
def test_the_hull_is_the_smallest_range_that_holds_both(a, b, both):
    a, b = jnp.array(a), jnp.array(b)
    np.testing.assert_array_equal(calibrate.hull(a, b), both)
    np.testing.assert_array_equal(calibrate.hull(b, a), both)
