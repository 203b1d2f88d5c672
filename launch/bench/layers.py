"""The LUT's engine against ONNX Runtime, layer by layer: one op on one image, both in INT8.

Both compute the same inverted residual of Table I's blocks, with random weights, on the features of
an image of 128 x 256. The engine runs a few prefixes in a call, whose own time is small; its time
is that of one. The fastest of many calls counts: this needs idle cores.
"""

import argparse
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lut_ort
import machine
from lut import DEPTHS, DILATIONS, OPS, STRIDES, asked
from qnas_jax import space
from qnas_jax.bwnas.lut import prefix_tree, workload
from qnas_jax.errors import InputError
from qnas_jax.kernels import int8
from qnas_jax.nn import supernet
from qnas_jax.quant import calibrate

BITS = (8, 8)
IMAGE = 128, 256
PREFIXES, REPEATS = 4, 50  # of the engine in a call, and calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--blocks", default="1,2,3,4,5,6", help="which blocks, from 1")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the ops of each block's first and second layer; prints a table."""
    numbers, kernel = asked(arguments.blocks), int8.find_kernel()
    if kernel.kernel != "C++":
        raise InputError(f"the engine is not in C++ here: {kernel.reason or 'not a CPU'}")
    shape, found = (IMAGE[0] // 2, IMAGE[1] // 2), []  # after the stem
    print("block layer op     GMAC  engine ms  in 1x1  GMAC/s  ort ms  GMAC/s  ratio")
    for number, block in enumerate(space.mobilenet_v2_blocks(1.0, STRIDES, DILATIONS)[1:], 1):
        after = tuple(-(-size // block.stride) for size in shape)
        layers = [(1, _layer(block, 0), shape)]
        if DEPTHS[number - 1] > 1:
            layers.append((2, _layer(block, 1), after))
        for layer, one, size in layers if number in numbers else ():
            found += [_measured(number, layer, one, op, size, kernel.kernel) for op in OPS]
        shape = after
    total = {name: sum(one[name] for one in found) for name in ("engine_s", "ort_s")}
    print(f"ratio of all          {total['ort_s'] / total['engine_s']:.2f}")
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "image": IMAGE,
        "threads": len(os.sched_getaffinity(0)),
        "ratio": total["ort_s"] / total["engine_s"],
        "layers": found,
    }


def _layer(block: space.Block, layer: int) -> space.Block:
    """A layer of a block as a block."""
    in_channels, stride = block.layer_shape(layer)
    return space.Block(in_channels, block.channels, stride, block.layer_dilation(layer), 1)


def _measured(number, layer, block, op, shape, kernel) -> dict[str, Any]:
    work = workload.work(block, (op,), [[BITS]], shape)
    engine = _engine_seconds(block, op, shape, kernel)
    threads = len(os.sched_getaffinity(0))
    ort, _ = lut_ort.seconds(block, [(op,)], shape, threads)
    hidden, out = block.in_channels * op.expansion, [-(-size // block.stride) for size in shape]
    pixels = shape[0] * shape[1] * block.in_channels + out[0] * out[1] * block.channels
    print(
        f"{number:5d} {layer:5d} {op} {work.macs / 1e9:8.4f} {1e3 * engine:10.3f} "
        f"{pixels * hidden / work.macs:7.0%} {work.macs / engine / 1e9:7.0f} {1e3 * ort:7.3f} "
        f"{work.macs / ort / 1e9:7.0f} {ort / engine:6.2f}",
        flush=True,
    )
    return {
        "block": number,
        "layer": layer,
        "op": str(op),
        "macs": work.macs,
        "engine_s": engine,
        "ort_s": ort,
        "ratio": ort / engine,
    }


def _engine_seconds(block, op, shape, kernel) -> float:
    """Seconds of one prefix."""
    params = supernet.init_block(jax.random.key(0), block, (op,))
    tree = prefix_tree.build(params, block, (op,), [[BITS]], calibrate.min_max, kernel=kernel)
    x = np.random.default_rng(0).normal(size=(1, *shape, block.in_channels)).astype(np.float32)
    found = prefix_tree.calibrate(tree, jnp.asarray(x))
    passes = prefix_tree.passes_of(tree)
    start = passes.start(x, prefix_tree.INPUT_BITS, found.input_range)
    xs, packed = jax.tree.map(lambda leaf: np.repeat(leaf, PREFIXES, 0), (start, found.nodes[0][0]))
    given = jax.device_put((passes.weights[0][0], xs, packed))
    return machine.seconds(lambda: passes.run_layer(tree.layers[0], *given), REPEATS) / PREFIXES
