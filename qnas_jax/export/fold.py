"""From a Flax network to the graph that is written: batch norm folded, weights as codes.

Folding multiplies each output channel by the factor of its norm. Weights are quantized per
channel, so the factor goes into the channel's scale and the codes stay. A negative factor
changes the signs of the codes, which a symmetric grid allows. With one scale for a layer
(`ptq/per_tensor.py`) the ranges of its channels are such that all get the same scale here.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, PyTree

from qnas_jax.errors import InputError
from qnas_jax.export import build
from qnas_jax.export.build import PIXELS, Weights
from qnas_jax.export.graph import Graph, QParams
from qnas_jax.kernels import convolution
from qnas_jax.nn.conv import W_RANGE, W_SCALE, ConvBnAct
from qnas_jax.nn.policy import at, output_at
from qnas_jax.nn.trace import Shape, Unit, trace
from qnas_jax.nn.units import PIXEL_RANGE, Input
from qnas_jax.quant import affine

# A channel's scale is at least what its bias needs, and what float32 holds.
MOST_BIAS_CODES, LEAST_SCALE = 2.0**30, 2.0**-64
# A channel whose output varies less reads only zeros: its norm divides by little else than its
# epsilon.
IDLE_VARIANCE = 100 * convolution.NORM_EPSILON


def fold(
    module: nn.Module,
    variables: PyTree,
    quant: PyTree | None,
    image_shape: Shape,
    *,
    resize: bool,
) -> Graph:
    """A network as a graph: bytes of an image in, classes out.

    Args:
      module: A network of units (`nn/units.py`) that gives logits.
      variables: Its `params` and `batch_stats`.
      quant: Its policy, calibrated; None for the float network.
      image_shape: Height, width and channels of the images.
      resize: Whether every pixel of the image gets a class, from logits that are resized to it
        (segmentation); else every pixel of the logits does (classification: there is one).

    Raises:
      InputError: The policy was not calibrated.
      ValueError: The network has something that a graph cannot hold; see `trace` and `build`.
    """
    traced, variables = trace(module, image_shape), jax.device_get(variables)
    if quant is None:
        numbers = functools.partial(_real_weights, variables)
        return build.of_images(traced, None, numbers, resize)
    coded = _coded(traced.units, variables["params"], quant)
    numbers = functools.partial(_code_weights, variables, coded.kernels)
    network = build.of_images(traced, coded.grids, numbers, resize)
    ranges = [output_at(quant, conv.out.name).get("range") for conv in network.convs]
    if ranges and not any(np.ptp(range_) for range_ in ranges if range_ is not None):
        raise InputError("no layer has a range; calibrate the network before its export")
    return network


class _Kernel(NamedTuple):
    """A kernel on its grid."""

    codes: Float[np.ndarray, "k k i o"]  # whole numbers
    scale: Float[np.ndarray, "o"]
    bits: int
    per_channel: bool  # whether channels have scales of their own once their norms are folded in


class _Coded(NamedTuple):
    """What a policy says of a network.

    Attributes:
      grids: Of the outputs that have a grid of their own, by the names of their units.
      kernels: Of the convolutions, by their names.
    """

    grids: dict[str, QParams]
    kernels: dict[str, _Kernel]


def _coded(units: Sequence[Unit], params: PyTree, quant: PyTree) -> _Coded:
    """All grids, and all kernels as codes: one program, not one for each shape."""
    on_grids = [unit for unit in units if unit.has_grid]
    convs = [unit.name for unit in units if isinstance(unit.module, ConvBnAct)]
    for unit in on_grids:
        if isinstance(unit.module, Input):
            _check_pixels(output_at(quant, unit.name))

    @jax.jit
    def encode(params, quant):
        grids, kernels = {}, {}
        for unit in on_grids:
            leaves = output_at(quant, unit.name)
            grids[unit.name] = affine.asymmetric_grid(leaves["range"], leaves["a_bits"])[:2]
        for name in convs:
            leaves = at(quant, name)
            given = leaves["w_bits"], leaves.get(W_SCALE), leaves.get(W_RANGE)
            kernels[name] = affine.weight_codes(at(params, name)["kernel"], *given)
        return grids, kernels

    grids, kernels = jax.device_get(encode(params, quant))
    return _Coded(
        {
            name: QParams(float(scale), int(zero_point), int(output_at(quant, name)["a_bits"]))
            for name, (scale, zero_point) in grids.items()
        },
        {
            name: _Kernel(codes, scale, int(leaves["w_bits"]), W_RANGE not in leaves)
            for name, (codes, scale) in kernels.items()
            for leaves in [at(quant, name)]
        },
    )


def _check_pixels(leaves: PyTree) -> None:
    """The bytes of an image must be the codes of the network's input."""
    same = np.array_equal(np.asarray(leaves["range"]), np.asarray(PIXEL_RANGE, np.float32))
    if not (same and int(leaves["a_bits"]) == PIXELS.bits):
        raise ValueError(f"the network's input is on the grid {leaves}, not that of bytes")


def _real_weights(variables: PyTree, unit: Unit, read: QParams | None, out: QParams | None):
    """The weights of a convolution in float."""
    factor, bias = _affine(variables, unit.name)
    kernel = np.asarray(at(variables["params"], unit.name)["kernel"], np.float64)
    return Weights((kernel * factor).astype(np.float32), bias.astype(np.float32))


def _code_weights(
    variables: PyTree,
    kernels: dict[str, _Kernel],
    unit: Unit,
    read: QParams | None,
    out: QParams | None,
) -> Weights:
    """The weights and the bias of a convolution as codes.

    A bias is a whole number of steps; a step is the product of an input's scale and a weight's.
    Where a norm divides by almost zero, because its channel reads only zeros, a step may
    be many codes of the output. It is then made so fine that the largest weight times one code
    of the input crosses half of the output's grid. Weights beyond that are clipped; they
    only multiply zeros. A channel that its norm almost switches off would need a bias of more
    than 32 bits, and gets larger steps. With one scale for a layer all channels get the largest.
    """
    assert read is not None and out is not None
    codes, scale, w_bits, per_channel = kernels[unit.name]
    factor, bias = _affine(variables, unit.name)
    idle = _variance(variables, unit.name) < IDLE_VARIANCE
    exact = scale.astype(np.float64) * np.abs(factor)
    least = np.maximum(np.abs(bias) / (read.scale * MOST_BIAS_CODES), LEAST_SCALE)
    q_max = np.abs(codes).max(initial=1)
    most = np.where(idle, out.q_max / 2 / q_max * out.scale / read.scale, np.inf)
    w_scale = np.maximum(np.minimum(exact, most), least).astype(np.float32)
    if not per_channel:
        exact = np.full_like(exact, exact.max())
        w_scale = np.maximum(exact, least.max()).astype(np.float32)
    ratio = np.where(w_scale == exact.astype(np.float32), 1.0, exact / w_scale)
    weights = np.clip(np.rint(codes * np.sign(factor) * ratio), -q_max, q_max)
    bias_codes = np.rint(bias / (read.scale * w_scale.astype(np.float64)))
    whole = (weights.astype(np.int8), bias.astype(np.float32), w_bits)
    return Weights(*whole, w_scale, bias_codes.astype(np.int32))


def _affine(variables: PyTree, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What follows the convolution itself: factor and bias of each channel, float64."""
    params, statistics = (at(variables.get(kind, {}), name) for kind in ("params", "batch_stats"))
    if "norm" not in params:
        bias = np.asarray(params["bias"], np.float64)
        return np.ones_like(bias), bias
    scale, bias = (np.asarray(params["norm"][leaf], np.float64) for leaf in ("scale", "bias"))
    mean, var = (np.asarray(statistics["norm"][leaf], np.float64) for leaf in ("mean", "var"))
    factor = scale / np.sqrt(var + convolution.NORM_EPSILON)
    return factor, bias - mean * factor


def _variance(variables: PyTree, name: str) -> np.ndarray | float:
    """The variance by which a norm divides, of each channel; infinite without a norm."""
    leaves = at(variables.get("batch_stats", {}), name)
    return np.asarray(leaves["norm"]["var"]) if "norm" in leaves else np.inf


def with_bias_codes(variables: PyTree, network: Graph) -> PyTree:
    """The variables with the weights and biases that the quantized graph has.

    Fake quantization with them differs from the graph by the rounding of float32 alone; with
    the variables that the graph was made from, by the rounding of the biases, too.

    Args:
      variables: `params` and `batch_stats` that the graph was made from; if there is a `quant`
        with learned scales, or with one for a layer, it gets those of the graph.
      network: The quantized graph.
    """
    params = jax.tree.map(np.asarray, variables["params"])
    quant = jax.tree.map(np.asarray, variables.get("quant", {}))
    tensors = network.tensors()
    for conv in network.convs:
        read, leaves = tensors[conv.x].grid, at(params, conv.out.name)
        assert read is not None and conv.w_scale is not None and conv.bias_codes is not None
        factor, offset = _affine(variables, conv.out.name)
        w_scale = conv.w_scale.astype(np.float64)
        holder = leaves.get("norm", leaves)
        change = conv.bias_codes * w_scale * read.scale - offset
        holder["bias"] = (holder["bias"] + change).astype(np.float32)
        kept = np.where(factor == 0, 1.0, factor)
        kernel = (conv.weights * (w_scale / kept)).astype(np.float32)
        leaves["kernel"] = np.where(factor == 0, leaves["kernel"], kernel)
        scales = at(quant, conv.out.name)
        q_max = 2.0 ** (int(conv.w_bits or 0) - 1) - 1
        for leaf, steps in ((W_SCALE, 1.0), (W_RANGE, q_max)):
            if leaf in scales:
                new = np.where(factor == 0, scales[leaf], steps * w_scale / np.abs(kept))
                scales[leaf] = new.astype(np.float32)
    return {**variables, "params": params, **({"quant": quant} if quant else {})}
