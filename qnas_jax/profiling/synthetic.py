"""Networks with random weights and ranges, to be timed: nothing is trained or calibrated.

The latency of a layer does not depend on its numbers. The graphs are those of `fold.fold` in all
but the numbers.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np

from qnas_jax import space
from qnas_jax.export import build
from qnas_jax.export.build import Weights
from qnas_jax.export.graph import Bounds, ConvNode, Graph, Node, QParams, Tensor
from qnas_jax.hardware import board
from qnas_jax.nn.conv import RELU, ConvBnAct
from qnas_jax.nn.fake_quant import DEFAULT_BITS
from qnas_jax.nn.trace import IMAGE, Trace, Unit, trace
from qnas_jax.nn.units import PIXEL_RANGE

FIXED = (DEFAULT_BITS, DEFAULT_BITS)  # weights and activations of all that is not searched
_REACH = 4.0  # values that no activation bounds are in [-4, 4)


def network(
    traced: Trace,
    bits: Sequence[Sequence[space.Bits]] | None,
    seed: int = 0,
    *,
    resize: bool = True,
) -> Graph:
    """A network as a graph with random numbers: bytes of an image in, classes out.

    Args:
      traced: The network.
      bits: Bitwidths of weights and activations of the searched layers, by block; None for float.
      seed: Of the weights.
      resize: As `fold.fold` takes it.
    """
    policy = None if bits is None else _policy(traced, bits)
    return build.of_images(traced, *_numbers(traced, policy, seed), resize)


def _policy(traced: Trace, bits: Sequence[Sequence[space.Bits]]) -> dict[str, space.Bits]:
    """The bitwidths of all units."""
    sites = {unit.name: unit.site for unit in traced.units}
    return {name: bits[s.block][s.layer] if s else FIXED for name, s in sites.items()}


def _numbers(
    traced: Trace, policy: Mapping[str, space.Bits] | None, seed: int
) -> tuple[dict[str, QParams] | None, build.Numbers]:
    """Grids and weights at the bitwidths of a policy; without one, in float."""
    rng = np.random.default_rng(seed)
    if policy is None:
        return None, functools.partial(_weights, rng, {})
    bounds, own = _bounds(traced), [unit.name for unit in traced.units if unit.has_grid]
    grids = {name: _grid(bounds[name], policy[name][1]) for name in own}
    return grids, functools.partial(_weights, rng, policy)


def _bounds(traced: Trace) -> dict[str, Bounds]:
    """The interval of each unit's output, as far as its activation bounds it."""
    found: dict[str, Bounds] = {IMAGE: PIXEL_RANGE}
    for unit in traced.units:
        lows, highs = zip(*(found[name] for name in unit.inputs), strict=True)
        whole = (min(lows), max(highs))
        found[unit.name] = unit.module.bounds if isinstance(unit.module, ConvBnAct) else whole
    return found


def _grid(bounds: Bounds, bits: int) -> QParams:
    """The grid that such values fill."""
    low, high = max(bounds[0], -_REACH), bounds[1] if np.isfinite(bounds[1]) else _REACH
    scale = (high - low) / (2**bits - 1)
    return QParams(float(scale), int(np.rint(-low / scale)), bits)


def _weights(
    rng: np.random.Generator,
    policy: Mapping[str, space.Bits],
    unit: Unit,
    read: QParams | None,
    out: QParams | None,
) -> Weights:
    """Weights that keep the size of values, so that few codes saturate."""
    conv = unit.conv
    assert conv is not None
    inputs = conv.in_channels // conv.groups
    shape = (conv.kernel, conv.kernel, inputs, conv.out_channels)
    deviation = np.sqrt(2 / (conv.kernel**2 * inputs))
    weights = (deviation * rng.standard_normal(shape, np.float32)).astype(np.float32)
    bias = rng.standard_normal(conv.out_channels, np.float32) / 2
    if read is None or out is None:
        return Weights(weights, bias)
    w_bits, _ = policy[unit.name]
    scale = np.abs(weights).max((0, 1, 2)) / np.float32(2 ** (w_bits - 1) - 1)
    codes = np.rint(weights / scale).astype(np.int8)
    bias_codes = np.rint(bias / (read.scale * scale)).astype(np.int32)
    return Weights(codes, bias, w_bits, scale, bias_codes)


def with_layer_scales(network: Graph) -> Graph:
    """Returns a network in which all weights of a convolution share the largest of its scales."""

    def shared(node: Node) -> Node:
        if not isinstance(node, ConvNode) or node.w_scale is None:
            return node
        return dataclasses.replace(node, w_scale=np.full_like(node.w_scale, node.w_scale.max()))

    return Graph(network.x, tuple(map(shared, network.nodes)))


def calls() -> dict[str, Graph]:
    """A tiny convolution and two in a row, to measure the time of a call; see `board.CALLS`."""
    return {name: _pointwise(count) for count, name in enumerate(board.CALLS, 1)}


def _pointwise(count: int) -> Graph:
    channels = board.CALL_SHAPE[-1]
    layers = [ConvBnAct(channels, bounds=RELU, norm=False) for _ in range(count)]
    return piece(nn.Sequential(layers), board.CALL_SHAPE)


def piece(module: nn.Module, shape: tuple[int, int, int]) -> Graph:
    """A part of a network at 8 bits with random numbers: codes in, codes out.

    Args:
      module: Of units, as `trace` takes it.
      shape: Height, width and channels of its input.
    """
    traced = trace(module, shape)
    policy = {unit.name: FIXED for unit in traced.units}
    x = Tensor("x", shape, _grid(RELU, DEFAULT_BITS))
    return build.build(traced, x, *_numbers(traced, policy, seed=0))
