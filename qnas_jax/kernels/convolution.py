"""Convolutions and batch norm as functions, each in the form that its platform runs fast.

On the CPU, XLA's depthwise convolution is 30 to 100 times slower than necessary, and XLA fuses a
reduction with the computation of its input, and so repeats that computation; both are written
differently here. Images are [n, h, w, channels]; padding is symmetric, `dilation * (kernel - 1)
// 2` on every side. Functions that are jitted here are traced once for each shape, however often
a network calls them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8, UInt8

from qnas_jax.kernels import forms

NORM_EPSILON = 1e-5  # added to the variance, as in torch
# Shapes of a layer's input and kernel: 8 images of 512 x 1024 at an eighth of their size.
MEASURED = (8, 64, 128, 192), (5, 5, 192)


def pointwise(x: Float[Array, "*n h w i"], w: Float[Array, "i o"]) -> Float[Array, "*n h w o"]:
    """A 1x1 convolution: one matrix product over the channels.

    All pixels are one axis: with images, rows and columns as axes, XLA's product for the gradient
    of `w` is 1.3 to 10 times slower on the CPU.
    """
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def pointwise_codes(x: UInt8[Array, "*n h w i"], w: Int8[Array, "i o"]) -> Float[Array, "*n h w o"]:
    """`pointwise` of codes, exact up to sums of 2**24.

    Codes of 8 bits are exact in bfloat16, the fastest type of accelerators; a CPU is fastest in
    float32.
    """
    dtype = jnp.float32 if forms.on_cpu() else jnp.bfloat16
    x, w = x.astype(dtype), w.astype(dtype)
    return jnp.einsum("...i,io->...o", x, w, preferred_element_type=jnp.float32)


def conv(
    x: Float[Array, "n h w i"],
    w: Float[Array, "k k i o"],
    stride: int,
    dilation: int,
) -> Float[Array, "n h2 w2 o"]:
    """A dense convolution."""
    return _lax_conv(x, w, stride, dilation, groups=1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise(
    x: Float[Array, "n h w c"], w: Float[Array, "k k c"], stride: int, dilation: int
) -> Float[Array, "n h2 w2 c"]:
    """A depthwise convolution, one kernel per channel, in the form of `depthwise_form`."""
    form = depthwise_form()
    if form == "grouped":
        return _lax_conv(x, w[:, :, None, :], stride, dilation, groups=x.shape[-1])
    run = _depthwise_taps if form == "cpu" else _padded_taps
    # Sums in float32, also of bfloat16.
    y: Any = run(x.astype(jnp.float32), w.astype(jnp.float32), stride, dilation)
    return y.astype(x.dtype)


def depthwise_form() -> forms.Form:
    """The form of depthwise convolutions: on a CPU always "cpu", else the faster one.

    An accelerator is measured at the first call in a process, on `MEASURED`, forward and backward.
    """
    return forms.for_depthwise(_typical, MEASURED, ("grouped", "shifted"))


@jax.jit
def _typical(x, w):
    """A layer with its gradients, in the form that is given."""

    def total(x, w):
        return jnp.sum(jnp.square(depthwise(x, w, 1, 1)))

    return jax.value_and_grad(total, (0, 1))(x, w)


def _lax_conv(x, w, stride, dilation, groups):
    pad = dilation * (w.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _taps(x, w, stride, dilation):
    """Depthwise convolution without padding, as a sum of shifted products.

    XLA fuses the sum into one pass over `x`, vectorized over the channels. Each row of the
    kernel has its own sum, so that a product need not wait for the one before it.
    """
    k = w.shape[0]
    reach = dilation * (k - 1)
    rows = (x.shape[1] - reach - 1) // stride + 1
    columns = (x.shape[2] - reach - 1) // stride + 1
    total = 0.0
    for i in range(k):
        row = 0.0
        for j in range(k):
            top, left = i * dilation, j * dilation
            window = lax.slice(
                x,
                (0, top, left, 0),
                (
                    x.shape[0],
                    top + (rows - 1) * stride + 1,
                    left + (columns - 1) * stride + 1,
                    x.shape[3],
                ),
                (1, stride, stride, 1),
            )
            row = row + window * lax.broadcast_to_rank(w[i, j], x.ndim)
        total = total + row
    return total


def _alone(function, *args):
    """`function(*args)`, computed once even if several others read the result.

    XLA would fuse a copy of the computation into each of them, but does not look into a
    conditional. (An optimization barrier does not stop it on the CPU.) The condition must be one
    that it cannot evaluate: that the first number is not infinite or NaN.
    """
    out = jax.eval_shape(function, *args)
    nothing = functools.partial(jnp.full, out.shape, jnp.nan, out.dtype)
    return lax.cond(jnp.isfinite(args[0].ravel()[0]), function, lambda *_: nothing(), *args)


def _pad(x, pad):
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _padded_taps(x, w, stride, dilation):
    return _taps(_pad(x, dilation * (w.shape[0] - 1) // 2), w, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_taps(x, w, stride, dilation):
    """`_padded_taps` with gradients for CPUs; those that JAX derives suit accelerators."""
    return _padded_taps(x, w, stride, dilation)


def _depthwise_taps_fwd(x, w, stride, dilation):
    return _depthwise_taps(x, w, stride, dilation), (x, w)


def _depthwise_taps_bwd(stride, dilation, saved, g):
    x, w = saved
    k = w.shape[0]
    pad = dilation * (k - 1) // 2
    # dL/dx: spread the gradient over the strided pixels, correlate with the flipped kernel.
    sizes = zip(x.shape[1:3], g.shape[1:3], strict=True)
    ends = [size - (out - 1) * stride - 1 for size, out in sizes]
    spread = [(0, 0, 0), *((pad, pad + end, stride - 1) for end in ends), (0, 0, 0)]

    def correlate(g, w):
        g = lax.pad(g, jnp.zeros((), g.dtype), spread)
        return _taps(g, w[::-1, ::-1], 1, dilation)

    g_x = _alone(correlate, g, w)

    # dL/dw: the windows of x, weighted by the gradient, added up pixel by pixel. As k * k
    # reductions over the image it is 10 to 30 times slower.
    x = _pad(x, pad)
    n, rows, columns, channels = g.shape
    reach = dilation * (k - 1) + 1

    def add_pixel(total, pixel):
        image, row, column = pixel // (rows * columns), pixel // columns % rows, pixel % columns
        window = lax.dynamic_slice(
            x, (image, row * stride, column * stride, 0), (1, reach, reach, channels)
        )[0, ::dilation, ::dilation]
        weight = lax.dynamic_slice(g, (image, row, column, 0), (1, 1, 1, channels))
        return total + window * weight[0], None

    g_w, _ = lax.scan(
        add_pixel, jnp.zeros((k, k, channels), g.dtype), jnp.arange(n * rows * columns)
    )
    return g_x, g_w


_depthwise_taps.defvjp(_depthwise_taps_fwd, _depthwise_taps_bwd)


def _pixel_sums(function, *arrays):
    """Sums over all axes but the last, of each array that `function(*arrays)` returns.

    On the CPU row by row, in one pass for all sums: by itself, XLA stores the terms, or computes
    them again for each sum.
    """
    if not forms.on_cpu():
        return tuple(jnp.sum(x, range(x.ndim - 1)) for x in function(*arrays))
    rows = [x.reshape(-1, *x.shape[-2:]) for x in arrays]

    def add_row(totals, row):
        return jax.tree.map(jnp.add, totals, tuple(function(*row))), None

    shapes = jax.eval_shape(lambda *row: tuple(function(*row)), *(x[0] for x in rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return tuple(jnp.sum(row, 0) for row in lax.scan(add_row, zeros, tuple(rows))[0])


def affine(
    x: Float[Array, "*pixels c"], factor: Float[Array, "c"], offset: Float[Array, "c"]
) -> Float[Array, "*pixels c"]:
    """``x * factor + offset``, channel by channel."""
    return x * lax.broadcast_to_rank(factor, x.ndim) + lax.broadcast_to_rank(offset, x.ndim)


def pixel_moments(
    x: Float[Array, "n h w c"],
) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Mean and (biased) variance of each channel over images and pixels, in one pass.

    The sums are of distances to one of the pixels, so that the variance keeps its digits if the
    mean is far from zero.
    """
    pixels = x.size // x.shape[-1]
    pivot = x[0, 0, 0].astype(jnp.float32)

    def powers(x):
        distance = x.astype(jnp.float32) - lax.broadcast_to_rank(pivot, x.ndim)
        return distance, distance * distance

    first, second = (total / pixels for total in _pixel_sums(powers, x))
    return pivot + first, jnp.maximum(second - first * first, 0.0)


@functools.partial(jax.jit, static_argnums=3)
def norm_act(
    u: Float[Array, "n h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    bounds: tuple[float, float],
) -> tuple[Float[Array, "n h w c"], Float[Array, "c"], Float[Array, "c"]]:
    """Batch norm by the batch's own statistics, then clipping to the activation's bounds.

    Both are one function, so that the gradient takes few passes over the pixels; by itself, the
    compiler repeats the computation before it in each pass.

    Args:
      u: The output of a convolution.
      scale: The norm's learned factor.
      bias: The norm's learned offset.
      bounds: Lower and upper bound of the activation: (0, 6) for ReLU6, infinite for none.

    Returns:
      The activation, and the batch's mean and (biased) variance per channel, through which no
      gradient flows.
    """
    return _norm_act(u, scale, bias, bounds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm_act(u, scale, bias, bounds):
    return _norm_act_fwd(u, scale, bias, bounds)[0]


def _norm_act_fwd(u, scale, bias, bounds):
    mean, var = pixel_moments(u)
    rate = lax.rsqrt(var + NORM_EPSILON)
    factor = scale * rate
    y = jnp.clip(affine(u.astype(jnp.float32), factor, bias - mean * factor), *bounds)
    return (y.astype(u.dtype), mean, var), (u, scale, bias, mean, rate)


def _norm_act_bwd(bounds, saved, gradients):
    u, scale, bias, mean, rate = saved
    factor = scale * rate
    offset = bias - mean * factor

    def inside(g, u):
        y = affine(u.astype(jnp.float32), factor, offset)
        return jnp.where((y > bounds[0]) & (y < bounds[1]), g.astype(jnp.float32), 0.0)

    def products(g, u):
        g = inside(g, u)
        return g, g * (u - lax.broadcast_to_rank(mean, u.ndim))

    g_bias, g_rate = _pixel_sums(products, gradients[0], u)
    g_scale = rate * g_rate
    # factor * (g - mean(g) - normalized * mean(g * normalized)), as one affine pass
    pixels = u.size // u.shape[-1]
    slope = factor * rate * g_scale / pixels
    constant = slope * mean - factor * g_bias / pixels
    over = functools.partial(lax.broadcast_to_rank, rank=u.ndim)
    g_u = over(factor) * inside(gradients[0], u) - over(slope) * u + over(constant)
    return g_u.astype(u.dtype), g_scale, g_bias


_norm_act.defvjp(_norm_act_fwd, _norm_act_bwd)
