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


def _in_the_middles_of_bins(x):
    """Values that no rounding moves to another of the histogram's bins; the extremes stay."""
    low, high = x.min(), x.max()
    places = np.minimum((x - low) / (high - low) * 2048 // 1, 2047)
    moved = low + (places + 0.5) * (high - low) / 2048
    return np.where((x == low) | (x == high), x, moved).astype(np.float32)


def _drawn(name):
    rng = np.random.default_rng(0)
    x = rng.laplace(size=4000) if name == "laplace with outliers" else rng.normal(size=4000)
    x = np.maximum(x, 0) if name == "relu of normal" else x
    x[:2] = (30.0, 22.0) if name == "laplace with outliers" else x[:2]
    return _in_the_middles_of_bins(x + 3 * abs(x.min()) if name == "far from zero" else x)


def _plain_divergence(counts, middles, low, high, codes, bits):
    inside = [i for i in range(2048) if low <= middles[i] <= high]
    if len(inside) < 2**bits:
        return np.inf
    p, q, points = dict.fromkeys(inside, 0), dict.fromkeys(inside, 0.0), {}
    for i in range(2048):
        p[min(max(i, inside[0]), inside[-1])] += counts[i]
    for i in inside:
        points.setdefault(codes[i], []).append(i)
    for bins in points.values():
        filled = [i for i in bins if counts[i]]
        for i in filled:
            q[i] = sum(counts[filled]) / len(filled)
    p_sum, q_sum = sum(p.values()), sum(q.values())
    terms = [p[i] / p_sum * np.log(p[i] / p_sum / max(q[i] / q_sum, 1e-10)) for i in p if p[i]]
    return sum(terms)


def _plain_divergences(x, bits, codes_of):
    """The divergences of the fractions; `codes_of` are (middles, fraction) -> codes."""
    low, high = np.float64(x.min()), np.float64(x.max())
    counts = np.zeros(2048, int)
    for value in np.float64(x):
        counts[min(int((value - low) / (high - low) * 2048), 2047)] += 1
    middles = low + (np.arange(2048) + 0.5) * (high - low) / 2048
    return np.array(
        [
            _plain_divergence(counts, middles, low * s, high * s, codes_of(middles, s), bits)
            for s in np.arange(1, 21) / 20
        ]
    )


def _symmetric_codes(values, share, bits):
    most = 2 ** (bits - 1) - 1
    return np.clip(np.rint(values / (share / most)), -most, most)


NAMES = ["normal", "relu of normal", "laplace with outliers", "far from zero"]


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("name", NAMES)
def test_divergences_are_those_of_plain_loops_and_kl_takes_the_smallest(name, bits):
    x = _drawn(name)
    alpha, beta = np.float64([x.min(), x.max()])

    def codes_of(values, share):
        low, high = min(alpha * share, 0), max(beta * share, 0)
        scale = (high - low) / (2**bits - 1)
        zero_point = np.rint(-low / scale)
        return np.clip(np.rint(values / scale) + zero_point, 0, 2**bits - 1)

    def rounded(values, share):
        return affine.fake_quant(values, jnp.float32([alpha, beta]) * share, jnp.int32(bits))

    expected = _plain_divergences(x, bits, codes_of)
    found = calibrate.divergences(jnp.asarray(x), jnp.int32(bits), rounded)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    range_ = calibrate.kl(jnp.asarray(x), jnp.int32(bits))
    best = (1 + np.argmin(expected)) / 20
    np.testing.assert_allclose(range_, np.array([alpha, beta]) * best, rtol=1e-6)
    assert np.isinf(expected).any() == (bits == 8 or name == "far from zero")


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("name", NAMES[:3])
def test_the_share_of_weights_is_the_best_of_twenty(name, bits):
    x = _drawn(name)
    x = (x / np.abs(x).max()).astype(np.float32)
    both = _in_the_middles_of_bins(np.concatenate([x, -x]))
    x = both[: len(x)]
    most = 2 ** (bits - 1) - 1
    errors = [
        np.mean((_symmetric_codes(np.float64(x), s, bits) * s / most - x) ** 2)
        for s in np.arange(1, 21) / 20
    ]
    diverge = _plain_divergences(both, bits, lambda v, s: _symmetric_codes(v, s, bits))
    for way, values in (("mse", errors), ("kl", diverge)):
        found = calibrate.weight_share(jnp.asarray(x), jnp.int32(bits), way)
        assert float(found) == pytest.approx((1 + np.argmin(values)) / 20)
    assert float(calibrate.weight_share(jnp.asarray(x), jnp.int32(bits), "min_max")) == 1


@pytest.mark.parametrize("way", ["min_max", "mse", "kl"])
def test_one_program_finds_the_share_of_weights_for_all_bitwidths(way):
    x = calibrate.relative(jnp.asarray(_values((9, 30, 8)))).ravel()
    program = jax.jit(functools.partial(calibrate.weight_share, name=way))
    found = [float(program(x, jnp.int32(bits))) for bits in range(2, 9)]
    assert program._cache_size() == 1
    assert found == [float(calibrate.weight_share(x, jnp.int32(b), way)) for b in range(2, 9)]
    assert found == [1] * 7 if way == "min_max" else found[0] < found[-1]


def test_relative_weights_have_a_largest_magnitude_of_one_in_each_channel():
    w = _values((3, 3, 2, 5)) * np.float32([1, 10, 0.1, 0, 7])
    found = np.asarray(calibrate.relative(jnp.asarray(w)))
    for channel in range(5):
        largest = np.abs(w[..., channel]).max() or 1
        np.testing.assert_allclose(found[..., channel], w[..., channel] / largest, rtol=1e-6)
    assert np.abs(found).max((0, 1, 2)).tolist() == [1, 1, 1, 0, 1]
