"""Runs a quantized graph in JAX and gives the same codes as `interpret.py` in NumPy.

Convolutions run in float32, which is fastest on accelerators and CPUs. Integers up to 2**24 are
exact in float32. A convolution with larger accumulators is split by input channels, and the parts
are added in int32. Requantization is one product that is rounded at once. A compiler cannot fuse
it with another operation, so every program gives the same codes. (On an accelerator, the library
must add plain products; Winograd convolutions are not exact.)

Weights and grids are arguments of the program, so networks that differ only in them share it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, PyTree, UInt8

from qnas_jax.errors import InputError
from qnas_jax.export import graph, interpret
from qnas_jax.export.graph import Graph, Node, QParams, Tensor
from qnas_jax.kernels import convolution
from qnas_jax.nn.deeplab import resize_logits
from qnas_jax.quant import integer

EXACT = 2**24  # float32 represents every integer up to this one
CODES = np.arange(256, dtype=np.uint8)

Images: TypeAlias = UInt8[np.ndarray, "n h w c"] | UInt8[Array, "n h w c"]


class _Rounding(NamedTuple):
    """Requantization of accumulators; see `integer.requantize`."""

    multiplier: np.ndarray
    zero_point: np.float32
    bounds: tuple[np.float32, np.float32]


def simulator(network: Graph) -> Callable[[Images], Integer[Array, "n h w"]]:
    """Returns a compiled function images -> classes, for a quantized network.

    Raises:
      OverflowError: An accumulator of the network may not fit into int32.
    """
    name = network.out.name
    run = _compiled(network, (name,))
    return lambda images: run(images)[name][..., 0]


def logits(network: Graph) -> Callable[[Images], Float[Array, "n h w classes"]]:
    """Returns a compiled function images -> what a quantized network takes its classes from.

    Raises:
      OverflowError: An accumulator of the network may not fit into int32.
    """
    (name,) = network.nodes[-1].inputs
    run = _compiled(network, (name,))
    return lambda images: run(images)[name]


def tensors(network: Graph) -> Callable[[Images], dict[str, Array]]:
    """Returns a compiled function images -> all tensors by name, like `interpret.run`.

    Raises:
      OverflowError: An accumulator of the network may not fit into int32.
    """
    return _compiled(network, tuple(network.tensors()))


def _compiled(network: Graph, wanted: tuple[str, ...]) -> Callable[[Images], dict[str, Array]]:
    """A function images -> the wanted tensors."""
    if not all(conv.out.grid for conv in network.convs):
        raise InputError("a graph in float cannot be simulated in integers; give `quant` to it")
    found = network.tensors()
    constants = {
        node.out.name: _constants(node, [found[name] for name in node.inputs])
        for node in network.nodes
    }

    @jax.jit
    def run(constants, images):
        def step(node, inputs, grids):
            return _step(node, inputs, constants[node.out.name])

        values = interpret.walk(network, images, step)
        return {name: values[name] for name in wanted}

    return functools.partial(run, jax.device_put(constants))


def _constants(node: Node, inputs: list[Tensor]) -> PyTree:
    """The constants of a node."""
    grids, out = [tensor.grid for tensor in inputs], node.out.grid
    read = grids[0]
    match node:
        case graph.ConvNode():
            assert read and out
            low, high = out.code_bounds(node.bounds)
            rounding = _rounding(interpret.multiplier(node, read), out, low, high)
            weights = np.array_split(node.weights, _parts(node, read), axis=2)
            if not node.padding:
                return np.float32(read.zero_point), weights, node.bias_codes, rounding
            # Less the padding, there are zeros around the codes.
            around = node.padding_codes(read).astype(np.int32)
            shift = around - read.zero_point
            bias = node.bias_codes + np.einsum("klio,i->o", node.weights.astype(np.int32), shift)
            return np.float32(around[None, None, None]), weights, bias, rounding
        case graph.Mean():
            assert read and out
            height, width, _ = inputs[0].shape
            multiplier = interpret.mean_multiplier(read, out, height * width)
            return np.int32(read.zero_point), _rounding(multiplier, out, 0, out.q_max)
        case graph.Add():
            return interpret.step(node, list(np.meshgrid(CODES, CODES, indexing="ij")), grids)
        case graph.Dequantize():
            assert read
            return np.float32(read.scale), np.float32(read.zero_point)


def _rounding(multiplier: np.ndarray, out: QParams, low: int, high: int) -> _Rounding:
    return _Rounding(multiplier, np.float32(out.zero_point), (np.float32(low), np.float32(high)))


def _parts(conv: graph.ConvNode, read: QParams) -> int:
    """The smallest number of input-channel parts whose accumulators never exceed `EXACT`.

    Raises:
      OverflowError: The full accumulator may not fit into int32.
    """
    assert conv.bias_codes is not None
    zero = read.zero_point
    whole = _largest(conv.weights, zero, read.q_max - zero)
    whole = whole + np.abs(conv.bias_codes.astype(np.int64))
    if whole.max() > integer.INT32.max:
        raise OverflowError(f"{conv.out.name}: a sum of {whole.max()} does not fit into 32 bits")
    splits = ((n, np.array_split(conv.weights, n, axis=2)) for n in itertools.count(1))
    around = conv.padding_codes(read)
    ends = int(around.max()), read.q_max - int(around.min())
    fits = (n for n, parts in splits if all(_largest(w, *ends).max() <= EXACT for w in parts))
    return next(fits)  # one channel per part always fits


def _largest(weights: np.ndarray, low: int, high: int) -> np.ndarray:
    """Largest possible magnitude of any partial sum of values in [-low, high], by channel."""
    up, down = (np.maximum(sign * weights.astype(np.int64), 0).sum((0, 1, 2)) for sign in (1, -1))
    return np.maximum(up * high + down * low, up * low + down * high)


def _step(node: Node, inputs: list[Any], constants: PyTree) -> Any:
    """The output of one node."""
    x = inputs[0]
    match node:
        case graph.ConvNode():
            return _conv(node, x, *constants)
        case graph.Add():
            a, b = (codes.astype(jnp.int32) for codes in inputs)
            return jnp.take(constants.ravel(), a * len(CODES) + b, mode="clip")
        case graph.Mean():
            zero_point, rounding = constants
            sums = jnp.sum(x.astype(jnp.int32) - zero_point, (1, 2), keepdims=True)
            return _requantize(sums, rounding)
        case graph.Dequantize():
            scale, zero_point = constants
            return scale * (x.astype(jnp.float32) - zero_point)
        case graph.Broadcast():
            return jnp.broadcast_to(x, (len(x), *node.out.shape))
        case graph.Concat():
            return jnp.concatenate(inputs, -1)
        case graph.Resize():
            return resize_logits(x, *node.out.shape[:2])
        case graph.ArgMax():
            best = jnp.argmax(x, -1, keepdims=True)
            return best.astype(graph.class_type(x.shape[-1]))


def _conv(conv: graph.ConvNode, x, zero_point, weights, bias, rounding: _Rounding):
    x = x.astype(jnp.float32) - zero_point
    sums = bias[None, None, None]
    for part, w in zip(jnp.array_split(x, len(weights), -1), weights, strict=True):
        sums = sums + _sums(conv, part, w.astype(jnp.float32)).astype(jnp.int32)
    return _requantize(sums, rounding)


def _sums(conv: graph.ConvNode, x, w):
    """The convolution without bias and requantization."""
    if conv.groups > 1:
        return convolution.depthwise(x, w[:, :, 0], conv.stride, conv.dilation)
    if conv.kernel == 1 and conv.stride == 1:
        return convolution.pointwise(x, w[0, 0])
    return convolution.conv(x, w, conv.stride, conv.dilation)


def _requantize(sums, rounding: _Rounding):
    scaled = sums.astype(jnp.float32) * rounding.multiplier[None, None, None]
    rounded = lax.round(scaled, lax.RoundingMethod.TO_NEAREST_EVEN)
    return jnp.clip(rounded + rounding.zero_point, *rounding.bounds).astype(jnp.uint8)
