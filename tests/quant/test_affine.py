import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import affine

ALL_BITS = range(2, 9)
EPSILON = np.finfo(np.float32).eps
# Ranges from calibration: across zero, on one side of it, a single value.
RANGES = [(-1.3, 2.1), (0.0, 6.0), (-3.0, 0.0), (0.5, 2.0), (-3.0, -1.0), (0.7, 0.7), (-1e-6, 3e4)]


def _bits(bits):
    return jnp.int32(bits)


def _normal(shape, seed=0, spread=1.0):
    values = np.random.default_rng(seed).normal(0, spread, shape)
    return values.astype(np.float32)


def _reference(x, alpha, beta, bits):
    """Asymmetric fake quantization (Jacob et al., eq. 1 and 12) in float32, like torch."""
    x, alpha, beta = np.float32(x), np.float32(alpha), np.float32(beta)
    alpha, beta = np.minimum(alpha, np.float32(0)), np.maximum(beta, np.float32(0))
    q_max = np.float32(2**bits - 1)
    scale = np.where(alpha == beta, np.float32(1), (beta - alpha) / q_max)
    zero_point = np.rint(-alpha / scale)
    codes = np.minimum(np.maximum(np.rint(x * (1 / scale)) + zero_point, 0), q_max)
    return scale * (codes - zero_point)


def _weight_reference(w, bits):
    """Symmetric fake quantization, one output channel at a time."""
    result = np.zeros_like(w)
    for channel in range(w.shape[-1]):
        part = w[..., channel]
        if np.any(part):
            q_max = 2 ** (bits - 1) - 1
            scale = np.abs(part).max() / np.float32(q_max)
            result[..., channel] = scale * np.clip(np.rint(part * (1 / scale)), -q_max, q_max)
    return result


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("range_", RANGES, ids=str)
def test_activations_equal_the_numpy_reference_bit_for_bit(range_, bits):
    x = _normal((4, 5, 6), spread=2.0)
    found = affine.fake_quant(jnp.asarray(x), jnp.array(range_), _bits(bits))
    np.testing.assert_array_equal(found, _reference(x, *range_, bits))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_ranges_per_channel_equal_separate_channels(bits):
    x = _normal((3, 4, len(RANGES)), spread=2.0)
    found = affine.fake_quant(jnp.asarray(x), jnp.array(RANGES).T, _bits(bits))
    for channel, range_ in enumerate(RANGES):
        alone = _reference(x[..., channel], *range_, bits)
        np.testing.assert_array_equal(found[..., channel], alone)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_weights_equal_the_numpy_reference_bit_for_bit(bits):
    w = _normal((3, 3, 4, 5)) * np.float32([1, 1e-3, 40, 0, 1])
    found = affine.fake_quant_weight(jnp.asarray(w), _bits(bits))
    np.testing.assert_array_equal(found, _weight_reference(w, bits))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_weight_codes_are_integers_that_dequantize_to_the_weights(bits):
    w = jnp.asarray(_normal((3, 3, 4, 5)) * np.float32([1, 1e-3, 40, 0, 1]))
    codes, scale = affine.weight_codes(w, _bits(bits))
    np.testing.assert_array_equal(codes, np.rint(codes))
    np.testing.assert_array_equal(
        np.abs(codes).max((0, 1, 2)), (2 ** (bits - 1) - 1) * (scale != 1)
    )
    quantized = affine.fake_quant_weight(w, _bits(bits))
    np.testing.assert_allclose(affine.dequantize(codes, scale, 0.0), quantized, rtol=2 * EPSILON)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_zero_is_exactly_on_the_grid_and_the_zero_point_is_a_code(bits):
    rng = np.random.default_rng(bits)
    ranges = np.sort(rng.normal(0, 1, (2, 200)), axis=0).astype(np.float32)
    _, zero_point, q_max = affine.asymmetric_grid(jnp.asarray(ranges), _bits(bits))
    assert q_max == 2**bits - 1
    np.testing.assert_array_equal(zero_point, np.rint(zero_point))
    assert np.all((zero_point >= 0) & (zero_point <= q_max))
    zeros = affine.fake_quant(jnp.zeros((3, 200)), jnp.asarray(ranges), _bits(bits))
    np.testing.assert_array_equal(zeros, 0.0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_grids_have_the_right_number_of_evenly_spaced_points(bits):
    x = jnp.linspace(-2, 2, 4001)
    points = np.unique(affine.fake_quant(x, jnp.array([-1.0, 1.5]), _bits(bits)))
    assert len(points) == 2**bits
    np.testing.assert_allclose(np.diff(points), 2.5 / (2**bits - 1), rtol=1e-4)
    points = np.unique(affine.fake_quant_weight(x[:, None], _bits(bits)))
    assert len(points) == 2**bits - 1
    np.testing.assert_array_equal(points, -points[::-1])
    assert points[-1] == 2.0


def test_ties_round_to_even():
    halves = jnp.array([0.5, 1.5, 2.5, 253.5, 254.5])
    scale_one = jnp.array([0.0, 255.0])
    found = affine.fake_quant(halves, scale_one, _bits(8))
    np.testing.assert_array_equal(found, [0, 2, 2, 254, 254])
    # Rounding is to an even multiple of the scale, for even and odd zero points.
    odd_zero_point = jnp.array([-1.0, 254.0])
    found = affine.fake_quant(jnp.array([-0.5, 0.5, 1.5, 2.5]), odd_zero_point, _bits(8))
    np.testing.assert_array_equal(found, [0, 0, 2, 2])
    w = jnp.array([[7.0], [0.5], [-0.5], [1.5], [-2.5], [6.5]])
    found = affine.fake_quant_weight(w, _bits(4))
    np.testing.assert_array_equal(found[:, 0], [7, 0, 0, 2, -2, 6])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_grid_points_do_not_change(bits):
    x = jnp.asarray(_normal((200, 1)))
    once = affine.fake_quant(x, jnp.array([-1.0, 1.7]), _bits(bits))
    np.testing.assert_array_equal(
        affine.fake_quant(once, jnp.array([-1.0, 1.7]), _bits(bits)), once
    )
    once = affine.fake_quant_weight(x, _bits(bits))
    np.testing.assert_array_equal(affine.fake_quant_weight(once, _bits(bits)), once)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_quantize_inverts_dequantize(bits):
    scale, zero_point, q_max = affine.asymmetric_grid(jnp.array([-1.0, 1.7]), _bits(bits))
    codes = jnp.arange(2.0**bits)
    values = affine.dequantize(codes, scale, zero_point)
    np.testing.assert_array_equal(affine.quantize(values, scale, zero_point, 0, q_max), codes)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_snap_equals_dequantize_of_quantize(bits):
    x = jnp.asarray(_normal((500,), spread=2.0))
    scale, zero_point, q_max = affine.asymmetric_grid(jnp.array([-1.0, 1.7]), _bits(bits))
    codes = affine.quantize(x, scale, zero_point, 0.0, q_max)
    assert codes.min() == 0 and codes.max() == 2**bits - 1
    snapped = affine.snap(x, scale, zero_point, 0.0, q_max)
    np.testing.assert_array_equal(snapped, affine.dequantize(codes, scale, zero_point))


def test_the_gradient_is_one_inside_the_range_and_zero_where_clipped():
    # Scale 1, codes 0 to 15, zero point 3; values that round to a code are inside the range.
    range_ = jnp.array([-3.0, 12.0])
    x = jnp.array([-50.0, -3.6, -3.4, -0.2, 0.0, 5.5, 12.4, 12.6, 50.0])
    inside = [0, 0, 1, 1, 1, 1, 1, 0, 0]
    gradient = jax.grad(lambda x: jnp.sum(3 * affine.fake_quant(x, range_, _bits(4))))(x)
    np.testing.assert_array_equal(gradient, 3 * np.array(inside))
    _, tangent = jax.jvp(
        lambda x: affine.fake_quant(x, range_, _bits(4)), (x,), (jnp.full(9, 2.0),)
    )
    np.testing.assert_array_equal(tangent, 2 * np.array(inside))


def test_no_gradient_flows_to_the_range():
    x = jnp.asarray(_normal((40,)))
    gradient = jax.grad(lambda r: jnp.sum(affine.fake_quant(x, r, _bits(4))))(
        jnp.array([-0.5, 0.5])
    )
    np.testing.assert_array_equal(gradient, [0, 0])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_weights_are_never_clipped_so_their_gradient_is_one(bits):
    w = jnp.asarray(_normal((3, 3, 4, 5)) * np.float32([1, 1e-3, 40, 0, 1]))
    factors = jnp.asarray(_normal(w.shape, seed=1))
    gradient = jax.grad(lambda w: jnp.sum(factors * affine.fake_quant_weight(w, _bits(bits))))(w)
    np.testing.assert_array_equal(gradient, factors)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_an_empty_range_gives_zeros_for_zeros(bits):
    zeros = jnp.zeros((2, 3))
    found = affine.fake_quant(zeros, jnp.zeros(2), _bits(bits))
    np.testing.assert_array_equal(found, zeros)
    np.testing.assert_array_equal(affine.fake_quant_weight(zeros, _bits(bits)), zeros)


@pytest.mark.parametrize("constant", [3.7, -0.02, 1e6])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_constant_keeps_its_value(constant, bits):
    x = jnp.full((2, 3), constant)
    range_ = jnp.array([constant, constant])
    # The end of the range is scale * code: a division and a product, each of which rounds.
    found = affine.fake_quant(x, range_, _bits(bits))
    np.testing.assert_allclose(found, x, rtol=2 * EPSILON)
    found = affine.fake_quant_weight(x, _bits(bits))
    np.testing.assert_allclose(found, x, rtol=2 * EPSILON)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_positive_factor_per_channel_does_not_change_weight_codes(bits):
    w = _normal((3, 3, 4, 5))
    factor = np.float32([0.013, 0.25, 1.0, 3.3, 170.0])

    codes, _ = affine.weight_codes(jnp.asarray(w), _bits(bits))
    codes_after, _ = affine.weight_codes(jnp.asarray(w * factor), _bits(bits))
    np.testing.assert_array_equal(codes_after, codes)
    folded = affine.fake_quant_weight(jnp.asarray(w * factor), _bits(bits))
    quantized = np.asarray(affine.fake_quant_weight(jnp.asarray(w), _bits(bits))) * factor
    # The codes are equal; only scale and factor are rounded a different number of times.
    np.testing.assert_allclose(folded, quantized, rtol=4 * EPSILON)


def test_a_channel_of_weights_with_nan_is_nan_and_the_others_are_not():
    w = _normal((40_000, 3))
    w[5, 1] = np.nan
    found = affine.fake_quant_weight(jnp.asarray(w), _bits(8))
    assert np.isnan(found[:, 1]).all()
    others = np.delete(w, 1, axis=1)
    np.testing.assert_array_equal(found[:, ::2], _weight_reference(others, 8))


def test_one_trace_serves_all_bitwidths():
    traces = []

    @jax.jit
    def both(x, w, range_, bits):
        traces.append(bits)
        return affine.fake_quant(x, range_, bits), affine.fake_quant_weight(w, bits)

    x, w, range_ = _normal((7,)), _normal((4, 3)), (-1.0, 0.6)
    found = [both(x, w, jnp.array(range_), _bits(bits)) for bits in ALL_BITS]
    assert len(traces) == 1
    for bits, (activations, weights) in zip(ALL_BITS, found, strict=True):
        np.testing.assert_array_equal(activations, _reference(x, *range_, bits))
        np.testing.assert_array_equal(weights, _weight_reference(w, bits))


def test_vmap_over_bitwidths_equals_a_loop():
    x, w = jnp.asarray(_normal((5, 7))), jnp.asarray(_normal((3, 3, 4, 2)))
    range_, bits = jnp.array([-1.0, 0.6]), jnp.array(ALL_BITS)
    mapped = jax.vmap(affine.fake_quant, (None, None, 0))(x, range_, bits)
    mapped_w = jax.vmap(affine.fake_quant_weight, (None, 0))(w, bits)
    for i, b in enumerate(bits):
        # Equal codes, but one program divides by q_max and the other multiplies by 1 / q_max.
        alone, alone_w = affine.fake_quant(x, range_, b), affine.fake_quant_weight(w, b)
        np.testing.assert_allclose(mapped[i], alone, rtol=2 * EPSILON)
        np.testing.assert_allclose(mapped_w[i], alone_w, rtol=2 * EPSILON)


def test_jit_gives_the_same_codes():
    x, w = jnp.asarray(_normal((5, 7))), jnp.asarray(_normal((3, 3, 4, 2)))
    range_ = jnp.array([-1.0, 0.6])
    jitted = affine.fake_quant(x, range_, _bits(5)), affine.fake_quant_weight(w, _bits(5))
    with jax.disable_jit():
        eager = affine.fake_quant(x, range_, _bits(5)), affine.fake_quant_weight(w, _bits(5))
    np.testing.assert_allclose(jitted[0], eager[0], rtol=2 * EPSILON)
    np.testing.assert_allclose(jitted[1], eager[1], rtol=2 * EPSILON)
