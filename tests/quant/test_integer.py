import math

import numpy as np
import pytest

from qnas_jax.quant import integer

RNG = np.random.default_rng(0)


def _loops(codes, zero_point, weights, bias, stride, dilation, groups, padding=None):
    """A convolution by its definition, in Python integers."""
    n, height, width, _ = codes.shape
    k, _, inputs, outputs = weights.shape
    pad = dilation * (k - 1) // 2
    rows, columns = -(-height // stride), -(-width // stride)
    result = np.zeros((n, rows, columns, outputs), object)
    for image, row, column, out in np.ndindex(*result.shape):
        group = out // (outputs // groups)
        total = int(bias[out])
        for i, j, channel in np.ndindex(k, k, inputs):
            y, x = row * stride + i * dilation - pad, column * stride + j * dilation - pad
            if 0 <= y < height and 0 <= x < width:
                code = int(codes[image, y, x, group * inputs + channel])
                total += (code - zero_point) * int(weights[i, j, channel, out])
            elif padding is not None:
                total += (int(padding[channel]) - zero_point) * int(weights[i, j, channel, out])
        result[image, row, column, out] = total
    return result


@pytest.mark.parametrize(
    ("k", "stride", "dilation", "groups", "outputs"),
    [
        (1, 1, 1, 1, 3),
        (3, 1, 1, 1, 5),
        (3, 2, 1, 4, 4),
        (5, 1, 2, 4, 4),
        (7, 2, 1, 4, 4),
        (3, 1, 4, 1, 2),
        (3, 1, 1, 2, 6),
    ],
)
def test_convolutions_are_exact(k, stride, dilation, groups, outputs):
    codes = RNG.integers(0, 256, (2, 5, 6, 4)).astype(np.uint8)
    weights = RNG.integers(-127, 128, (k, k, 4 // groups, outputs)).astype(np.int8)
    bias = RNG.integers(-(2**20), 2**20, outputs).astype(np.int32)
    found = integer.conv(codes, 131, weights, bias, stride, dilation, groups)
    assert found.dtype == np.int32
    expected = _loops(codes, 131, weights, bias, stride, dilation, groups)
    np.testing.assert_array_equal(found, expected.astype(np.int64))


@pytest.mark.parametrize(("k", "stride", "dilation"), [(3, 2, 1), (3, 1, 2), (5, 2, 1)])
def test_what_lies_around_may_be_given_by_channel(k, stride, dilation):
    codes = RNG.integers(0, 256, (2, 5, 6, 4)).astype(np.uint8)
    weights = RNG.integers(-127, 128, (k, k, 4, 5)).astype(np.int8)
    bias, padding = RNG.integers(-99, 99, 5).astype(np.int32), np.array([124, 0, 255, 9], np.uint8)
    how = (codes, 131, weights, bias, stride, dilation, 1)
    found = integer.conv(*how, padding)
    np.testing.assert_array_equal(found, _loops(*how, padding).astype(np.int64))
    assert np.any(found != integer.conv(*how))


def test_an_int32_overflow_is_refused():
    codes, weights = np.full((1, 1, 1, 1), 255, np.uint8), np.full((1, 1, 1, 1), 127, np.int8)
    bias = np.array([2**31 - 1], np.int32)
    with pytest.raises(OverflowError, match="a sum of 2147516032 does not fit into 32 bits"):
        integer.conv(codes, 0, weights, bias, 1, 1, 1)


def test_floats_round_ties_to_even():
    sums = np.array([[-5], [-3], [-1], [1], [3], [5], [7]], np.int32)
    found = integer.by_float(sums, np.array([0.5], np.float32))
    np.testing.assert_array_equal(found[:, 0], [-2, -2, 0, 0, 2, 2, 4])


def _gemmlowp(total, mantissa, right):
    """The two gemmlowp functions, in Python integers."""
    product = total * mantissa
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def test_fixed_point_equals_gemmlowp():
    sums = np.concatenate([RNG.integers(-(2**24), 2**24, 300), [0, 1, -1, 12345]])
    sums = sums.astype(np.int32)[:, None]
    for real in (0.5, 0.0017, 0.24999, 0.9999999999, 3e-6):
        found = integer.by_fixed_point(sums, np.array([real]))[:, 0]
        fraction, exponent = math.frexp(real)
        mantissa = round(fraction * 2**31)
        if mantissa == 2**31:
            mantissa, exponent = 2**30, exponent + 1
        left, right = max(exponent, 0), max(-exponent, 0)
        expected = [_gemmlowp(int(t) << left, mantissa, right) for t in sums[:, 0]]
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - sums[:, 0] * real).max() <= 1


def test_rules_differ_only_near_ties():
    sums = RNG.integers(-(2**15), 2**15, (1000, 3)).astype(np.int32)
    multiplier = np.array([0.0031, 0.0042, 0.00077], np.float32)
    a, b = (rule(sums, multiplier) for rule in (integer.by_float, integer.by_fixed_point))
    value = sums * multiplier.astype(np.float64)
    apart = np.abs(value - np.floor(value) - 0.5)
    assert np.abs(a - b).max() <= 1
    # The first of the two roundings is to a multiple of 2**-shift: 2**-7 for 0.0042.
    np.testing.assert_array_equal(a[apart > 2**-8], b[apart > 2**-8])
    assert (a != b).any()


def test_the_shift_may_round_ties_up():
    """1/32 is one half and a shift by 4, so the first rounding is exact for even sums."""
    sums = 2 * RNG.integers(-(2**12), 2**12, (2000, 1)).astype(np.int32)
    multiplier = np.array([1 / 32], np.float32)
    away, up = (
        rule(sums, multiplier) for rule in (integer.by_fixed_point, integer.by_fixed_point_up)
    )
    np.testing.assert_array_equal(up, np.floor(sums / 32 + 0.5))
    np.testing.assert_array_equal(away, np.sign(sums) * np.floor(np.abs(sums) / 32 + 0.5))
    assert (up != away).any()


def test_requantized_codes_lie_within_their_bounds():
    sums = np.array([[-1000, 1000], [0, 10]], np.int32)
    found = integer.requantize(sums, np.array([0.5, 1.0], np.float32), 3, (2, 9))
    np.testing.assert_array_equal(found, [[2, 9], [3, 9]])
    assert found.dtype == np.uint8


def test_the_sum_of_two_grids():
    a, b = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    grids = (0.021, 128), (0.034, 97), (0.05, 120)
    found = integer.add(a, b, *grids, 255)
    real = 0.021 * (a.astype(float) - 128) + 0.034 * (b.astype(float) - 97)
    value = real / 0.05 + 120
    expected = np.clip(np.rint(value), 0, 255)
    near_tie = np.abs(value - np.floor(value) - 0.5) < 1e-4
    np.testing.assert_array_equal(found[~near_tie], expected[~near_tie])
    assert np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(integer.add(a, b, *grids, 15), np.minimum(found, 15))


def test_the_mean_is_a_sum_and_a_count():
    codes = RNG.integers(0, 256, (2, 3, 5, 4)).astype(np.uint8)
    sums, pixels = integer.mean(codes, 100)
    assert pixels == 15
    np.testing.assert_array_equal(sums, codes.astype(int).sum((1, 2), keepdims=True) - 1500)
