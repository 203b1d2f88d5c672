import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from qnas_jax.kernels import convolution, forms
from qnas_jax.nn.conv import LINEAR, RELU, RELU6

# On an odd image: every pair of kernel and stride, kernel and dilation, stride and dilation.
# Then images of one pixel, of one row, of even sides, and smaller than the kernel's reach.
DEPTHWISE = [
    *((3, stride, dilation, (5, 9)) for stride in (1, 2) for dilation in (1, 2, 4)),
    *((5, 1, 2, (5, 9)), (5, 2, 1, (5, 9)), (5, 2, 4, (5, 9))),
    *((7, 1, 1, (5, 9)), (7, 1, 4, (5, 9)), (7, 2, 2, (5, 9))),
    *((3, 1, 1, (1, 1)), (5, 2, 1, (1, 1)), (7, 1, 4, (1, 1))),
    *((5, 2, 2, (1, 6)), (3, 2, 1, (6, 4)), (7, 2, 2, (2, 3))),
]


def _normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _out_size(size, stride):
    return tuple(-(-side // stride) for side in size)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _with_gradients(convolution, x, w, g, stride, dilation):
    y, pull = jax.vjp(lambda x, w: convolution(x, w, stride, dilation), x, w)
    return y, *pull(g)


def _lax_depthwise(x, w, stride, dilation):
    pad = dilation * (w.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        w[:, :, None, :],
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize(("kernel", "stride", "dilation", "size"), DEPTHWISE)
def test_depthwise_and_its_gradients_are_those_of_lax(kernel, stride, dilation, size):
    x, w = _normal((2, *size, 3)), _normal((kernel, kernel, 3), seed=1)
    g = _normal((2, *_out_size(size, stride), 3), seed=2)
    found = _with_gradients(convolution.depthwise, x, w, g, stride, dilation)
    expected = _with_gradients(_lax_depthwise, x, w, g, stride, dilation)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        # Sums of at most 90 products of about one, in another order.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_depthwise_under_vmap_is_a_loop():
    x, w = _normal((3, 2, 5, 4, 2)), _normal((3, 3, 3, 2), seed=1)
    g = _normal((3, 2, 5, 4, 2), seed=2)
    mapped = jax.vmap(_with_gradients, (None, 0, 0, 0, None, None))
    found = mapped(convolution.depthwise, x, w, g, 1, 1)
    for i in range(3):
        alone = _with_gradients(convolution.depthwise, x[i], w[i], g[i], 1, 1)
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["grouped", "shifted"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_depthwise_of_accelerators_and_its_gradients_are_those_of_cpus(form, dtype):
    x, w = _normal((2, 5, 9, 3)).astype(dtype), _normal((5, 5, 3), seed=1).astype(dtype)
    g = _normal((2, 3, 5, 3), seed=2).astype(dtype)
    here = _with_gradients(convolution.depthwise, x, w, g, 2, 2)
    with forms.given(form):
        there = _with_gradients(convolution.depthwise, x, w, g, 2, 2)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.dtype == dtype
        size = float(jnp.max(jnp.abs(ours.astype(jnp.float32))))
        atol = (1e-5 if dtype == jnp.float32 else 2e-2) * size
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_depthwise_spreads_a_gradient_that_is_not_finite():
    """A step that diverged must be seen, not taken for zero."""
    x, w, g = _normal((1, 3, 3, 1)), _normal((3, 3, 1)), jnp.ones((1, 3, 3, 1))
    for pixel in ((0, 0, 0, 0), (0, 1, 1, 0)):
        _, g_x, g_w = _with_gradients(convolution.depthwise, x, w, g.at[pixel].set(jnp.nan), 1, 1)
        assert jnp.isnan(g_x).any() and jnp.isnan(g_w).any()


def _numpy_conv(x, w, stride, dilation):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    kernel, pad = w.shape[0], dilation * (w.shape[0] // 2)
    rows, columns = _out_size(x.shape[1:3], stride)
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = np.zeros((len(x), rows, columns, w.shape[-1]))
    for row, column in np.ndindex(rows, columns):
        top, left = row * stride, column * stride
        reach = dilation * (kernel - 1) + 1
        window = x[:, top : top + reach : dilation, left : left + reach : dilation]
        total[:, row, column] = np.einsum("nijc,ijco->no", window, w)
    return total


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"),
    [(3, 1, 1, (5, 9)), (3, 2, 1, (5, 8)), (3, 1, 4, (3, 5)), (3, 1, 2, (1, 1)), (1, 2, 1, (5, 4))],
)
def test_conv_equals_the_numpy_reference(kernel, stride, dilation, size):
    x, w = _normal((2, *size, 3)), _normal((kernel, kernel, 3, 4), seed=1)
    found = convolution.conv(x, w, stride, dilation)
    np.testing.assert_allclose(found, _numpy_conv(x, w, stride, dilation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 9, 3), (1, 1, 1, 3), (4, 2, 3, 5, 3)])
def test_pointwise_is_a_matrix_product_over_the_channels(shape):
    x, w = _normal(shape), _normal((3, 5), seed=1)
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(convolution.pointwise(x, w), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["cpu", "grouped"])
def test_products_of_codes_are_exact(form):
    rng = np.random.default_rng(0)
    # The largest codes and as many of them as a float32 can add up.
    x, w = rng.integers(0, 256, (2, 3, 2, 512)), rng.integers(-127, 128, (512, 5))
    x[0, 0, 0], w[:, 0] = 255, 127
    with forms.given(form):
        found = convolution.pointwise_codes(jnp.uint8(x), jnp.int8(w))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, x @ w)


SIZES = [(2, 5, 9, 3), (1, 1, 7, 3), (3, 4, 1, 3)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_pixel_moments_are_those_of_float64(shape, mean):
    x = mean + _normal(shape) * jnp.array([[[[1.0, 0.01, 30.0]]]])
    found_mean, found_var = convolution.pixel_moments(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(found_mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-5)
    # With sums of squares about zero, a mean of 1000 would leave no digit of 0.0001.
    np.testing.assert_allclose(found_var, exact.var((0, 1, 2)), rtol=1e-4)


def test_the_moments_of_a_constant_are_itself_and_zero():
    constant = jnp.broadcast_to(jnp.array([0.0, -3.3, 1e6]), (2, 3, 4, 3))
    mean, var = convolution.pixel_moments(constant)
    np.testing.assert_array_equal(mean, constant[0, 0, 0])
    np.testing.assert_array_equal(var, 0.0)


def test_pixel_moments_of_accelerators_are_those_of_cpus():
    x = 5 + _normal((2, 5, 9, 3))
    here = convolution.pixel_moments(x)
    with forms.given("grouped"):
        there = convolution.pixel_moments(x)
    np.testing.assert_allclose(here, there, rtol=1e-5)


def _plain_norm_act(u, scale, bias, bounds):
    mean = jnp.mean(u, (0, 1, 2), keepdims=True)
    var = jnp.mean((u - mean) ** 2, (0, 1, 2), keepdims=True)
    normalized = (u - mean) / jnp.sqrt(var + convolution.NORM_EPSILON)
    y = scale.reshape(mean.shape) * normalized + bias.reshape(mean.shape)
    return jnp.clip(y, *bounds), mean.ravel(), var.ravel()


@functools.partial(jax.jit, static_argnums=(0, 5))
def _norm_gradients(norm_act, u, scale, bias, g, bounds):
    def loss(u, scale, bias):
        y, mean, var = norm_act(u, scale, bias, bounds)
        return jnp.sum(g * y), (y, mean, var)

    return jax.grad(loss, (0, 1, 2), has_aux=True)(u, scale, bias)


@pytest.mark.parametrize(
    ("shape", "bounds"),
    [*((shape, RELU6) for shape in SIZES), (SIZES[0], RELU), (SIZES[0], LINEAR)],
    ids=str,
)
def test_norm_act_and_its_gradients_are_those_of_the_plain_formula(shape, bounds):
    u = 2 + _normal(shape) * jnp.array([[[[1.0, 0.1, 8.0]]]])
    # Far enough that both bounds clip some pixels and leave others.
    scale, bias = jnp.array([3.0, 4.0, -2.0]), jnp.array([2.0, 3.0, 1.0])
    g = _normal(shape, seed=1)
    found = _norm_gradients(convolution.norm_act, u, scale, bias, g, bounds)
    with jax.enable_x64(True):
        exact = [np.asarray(a, np.float64) for a in (u, scale, bias, g)]
        expected = _norm_gradients(_plain_norm_act, *exact, bounds)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # By channel: the gradient of u is a difference of terms of scale / deviation.
        ours, theirs = np.asarray(ours).reshape(-1, 3), np.asarray(theirs).reshape(-1, 3)
        size = np.abs(theirs).max(0)
        np.testing.assert_allclose(ours / size, theirs / size, rtol=0, atol=1e-5)


def test_norm_act_of_a_single_pixel_is_its_bias():
    u, bias = _normal((1, 1, 1, 3)), jnp.array([1.0, 9.0, -1.0])
    y, mean, var = convolution.norm_act(u, jnp.ones(3), bias, RELU6)
    np.testing.assert_array_equal(mean, u[0, 0, 0])
    np.testing.assert_array_equal(var, 0.0)
    # u / sqrt(eps) is added and taken away again, rounded.
    np.testing.assert_allclose(y[0, 0, 0], [1.0, 6.0, 0.0], atol=1e-4)


def test_no_gradient_flows_through_the_statistics():
    def statistics(u, scale, bias):
        _, mean, var = convolution.norm_act(u, scale, bias, RELU6)
        return jnp.sum(mean + var)

    gradients = jax.grad(statistics, (0, 1, 2))(_normal((2, 3, 4, 2)), jnp.ones(2), jnp.ones(2))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)
