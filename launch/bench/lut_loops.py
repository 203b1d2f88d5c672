"""The peers of the table's engine: one subnet after another in JAX, and torch both ways.

All use the weights, statistics and ranges that the engine's calibration found, so all four
compute the same scores.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax import metrics, space
from qnas_jax.bwnas.lut import prefix_tree
from qnas_jax.kernels import convolution
from qnas_jax.nn import mbconv, mbconv_float


class OpConstants(NamedTuple):
    """What calibration found for one op at one node.

    Attributes:
      parts: Factor, offset and range of each convolution.
      add: Range of the sum with the input, if it is added.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float]]]
    add: tuple[float, float] | None


# By layer, node and op; laid out before anything is timed.
TreeConstants = dict[tuple[int, int, int], OpConstants]


def tree_constants(built: prefix_tree.PrefixTree, found: prefix_tree.Calibration) -> TreeConstants:
    """A tree's calibration, op by op."""
    result: TreeConstants = {}
    for number, layer in enumerate(built.layers):
        unpack = functools.partial(mbconv_float.unpack, layer)
        packed = jnp.asarray(found.nodes[number][0])
        nodes: Any = jax.tree.map(np.asarray, jax.vmap(unpack)(packed))
        for op, of_op in enumerate(nodes):
            for at in range(built.nodes(number)):
                result[number, at, op] = _op_constants(of_op, at)
    return result


def _op_constants(found: mbconv_float.OpCalibration, at: int) -> OpConstants:
    def bounds(grid):
        return float(grid.low[at, 0]), float(grid.high[at, 0])

    steps = {part: getattr(found, part) for part in mbconv_float.OpWeights._fields}
    parts = {
        part: (np.asarray(step.factor[at]), np.asarray(step.offset[at]), bounds(step.grid))
        for part, step in steps.items()
    }
    return OpConstants(parts, bounds(found.add) if found.add else None)


def jax_loop(
    params, block: space.Block, found: TreeConstants, input_range, ops, bits
) -> Callable[..., float]:
    """A function (path, x, target, variance) -> NSR: the module of each op, compiled once."""

    def applied(layer, op):
        module = mbconv.layer_module(block, layer, ops[op])
        return jax.jit(lambda variables, x: module.apply(variables, x))

    compiled = {(i, o): applied(i, o) for i in range(block.depth) for o in range(len(ops))}
    quantize = jax.jit(mbconv_float.affine.fake_quant)
    score = jax.jit(metrics.nsr)

    def run(path, x, target, variance):
        x, at = quantize(x, jnp.asarray(input_range), jnp.int32(prefix_tree.INPUT_BITS)), 0
        for layer, op in enumerate(path):
            variables = _variables(params, layer, ops[op], found[layer, at, op], bits)
            x = compiled[layer, op](variables, x)
            at = at * len(ops) + op
        return float(score(x, target, variance))

    return run


def _variables(params, layer, op, one: OpConstants, bits) -> dict[str, Any]:
    """An op's variables: its norms made to multiply by the factor and add the offset."""
    w_bits, a_bits = map(jnp.int32, bits)
    collections: dict[str, Any] = {"params": {}, "batch_stats": {}, "quant": {}}
    for part, (factor, offset, range_) in one.parts.items():
        kernel = params[f"layer{layer}"][str(op)][part]["kernel"]
        norm = {"scale": factor, "bias": offset}
        collections["params"][part] = {"kernel": kernel, "norm": norm}
        unit = np.full_like(factor, 1 - convolution.NORM_EPSILON)
        collections["batch_stats"][part] = {"norm": {"mean": np.zeros_like(factor), "var": unit}}
        out = {"a_bits": a_bits, "range": np.array(range_, np.float32)}
        collections["quant"][part] = {"w_bits": w_bits, "out": out}
    if one.add is not None:
        collections["quant"]["add"] = {"a_bits": a_bits, "range": np.array(one.add, np.float32)}
    return collections


class Torch:
    """A block in torch: channels_last, weights quantized beforehand, norms folded in."""

    def __init__(self, params, block: space.Block, found: TreeConstants, input_range, ops, bits):
        """Takes over the weights, on their grid."""
        import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

        self._torch, self._block, self._ops = torch, block, ops
        self._found, self._input_range, self._a_bits = found, input_range, bits[1]
        self._weights, self._norms = {}, {}
        for layer in range(block.depth):
            for o, op in enumerate(ops):
                for part, leaf in params[f"layer{layer}"][str(op)].items():
                    w = mbconv_float.affine.fake_quant_weight(leaf["kernel"], jnp.int32(bits[0]))
                    w = torch.from_numpy(np.array(w).transpose(3, 2, 0, 1))
                    self._weights[layer, o, part] = w.contiguous(memory_format=torch.channels_last)
                    self._norms[layer, o, part] = [
                        torch.from_numpy(np.array(leaf["norm"][name])) for name in ("scale", "bias")
                    ]

    def tensor(self, x) -> Any:
        """Features [n, h, w, c] as torch has them."""
        x = self._torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self._torch.channels_last)

    def root(self, x) -> Any:
        """The block's input, quantized."""
        return self._quantize(x, self._input_range, prefix_tree.INPUT_BITS)

    def loop(self, path: Sequence[int], x, target, variance) -> float:
        """One path by itself."""
        x, at = self.root(x), 0
        for layer, op in enumerate(path):
            x = self._op(layer, at, op, x)
            at = at * len(self._ops) + op
        return self._nsr(x, target, variance)

    def calibrate(self, path: Sequence[int], x) -> None:
        """Finds the statistics and ranges of one path by itself; what is found is not kept."""
        torch, functional = self._torch, self._torch.nn.functional
        low, high = torch.aminmax(x)
        x = self._quantize(x, (low, high), prefix_tree.INPUT_BITS)
        for layer, op in enumerate(path):
            y = x
            for part in mbconv_float.OpWeights._fields:
                w, (scale, bias) = self._weights[layer, op, part], self._norms[layer, op, part]
                y = functional.conv2d(y, w, None, **self._window(layer, part, w))
                var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
                factor = scale * torch.rsqrt(var + convolution.NORM_EPSILON)
                y = y * factor[:, None, None] + (bias - mean * factor)[:, None, None]
                y = y if part == "project" else y.clamp_(0, 6)
                y = self._quantize(y, torch.aminmax(y), self._a_bits)
            residual = self._found[layer, 0, op].add is not None
            x = self._quantize(x + y, torch.aminmax(x + y), self._a_bits) if residual else y

    def tree(self, x, target, variance) -> list[float]:
        """All paths, prefixes shared."""

        def walk(layer, at, x):
            for op in range(len(self._ops)):
                y = self._op(layer, at, op, x)
                if layer + 1 < self._block.depth:
                    yield from walk(layer + 1, at * len(self._ops) + op, y)
                else:
                    yield self._nsr(y, target, variance)

        with self._torch.inference_mode():
            return list(walk(0, 0, self.root(x)))

    def _op(self, layer, at, op, x):
        functional = self._torch.nn.functional
        one = self._found[layer, at, op]
        y = x
        for part, (factor, offset, range_) in one.parts.items():
            factor, offset = (self._torch.from_numpy(np.array(v)) for v in (factor, offset))
            w = self._weights[layer, op, part] * factor[:, None, None, None]
            y = functional.conv2d(y, w, offset, **self._window(layer, part, w))
            if part != "project":
                y = y.clamp_(0, 6)
            y = self._quantize(y, range_, self._a_bits)
        return y if one.add is None else self._quantize(x + y, one.add, self._a_bits)

    def _window(self, layer, part, w) -> dict[str, int]:
        """How `conv2d` applies the weights."""
        if part != "depthwise":
            return {}
        dilation = self._block.layer_dilation(layer)
        pad = dilation * (w.shape[-1] - 1) // 2
        stride = self._block.layer_shape(layer)[1]
        return {"stride": stride, "padding": pad, "dilation": dilation, "groups": len(w)}

    def _quantize(self, x, range_, bits):
        low, high = min(float(range_[0]), 0.0), max(float(range_[1]), 0.0)
        scale = (high - low) / (2**bits - 1) or 1.0
        zero_point = round(-low / scale)
        return self._torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 2**bits - 1)

    def _nsr(self, y, target, variance):
        noise = (y - target).square().mean((0, 2, 3))
        return float((noise / (variance + metrics.NSR_EPSILON)).mean())
