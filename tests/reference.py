"""What tests compare with: the same figures by the shortest way, however slow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax import metrics, space
from qnas_jax.nn import init, supernet
from qnas_jax.nn.mbconv import layer_module
from qnas_jax.quant import affine, calibrate

INPUT_BITS = 8


@functools.partial(jax.jit, static_argnums=0)
def _calibrated(module, variables, x):
    return module.apply(variables, x, mutable=["batch_stats", "quant"])


@functools.partial(jax.jit, static_argnums=0)
def _applied(module, variables, x):
    return module.apply(variables, x)


@functools.cache
def _fresh(module, channels):
    return init.initialize(module, jax.random.key(0), (1, 4, 4, channels))


def path_nsr(params, block, choices, calibration, x, target):
    """NSR of one path by itself: its modules are calibrated on `calibration`, run on `x`.

    Layer by layer, so that a module is compiled once for all paths that have it.

    Args:
      params: The block's supernet.
      block: Its shape.
      choices: Op and bitwidths of each layer.
      calibration: The block's input on the calibration images.
      x: The block's input on the images.
      target: What it shall give.
    """
    range_ = calibrate.min_max(calibration, jnp.int32(INPUT_BITS))
    snap = functools.partial(affine.fake_quant, range_=range_, bits=jnp.int32(INPUT_BITS))
    calibration, x = snap(calibration), snap(x)
    for layer, choice in enumerate(choices):
        module = layer_module(block, layer, choice.op)
        fresh = _fresh(module, block.layer_shape(layer)[0])

        def bits(place, value, choice=choice):
            name = place[-1].key
            return value if name == "range" else jnp.int32(getattr(choice, name))

        own = params[f"layer{layer}"][str(choice.op)]
        variables = {
            "params": own,
            "batch_stats": fresh["batch_stats"],
            "quant": jax.tree_util.tree_map_with_path(bits, fresh["quant"]),
        }
        for part, leaves in own.items():
            if "w_range" in leaves:  # one scale for the weights of a layer
                variables["quant"][part]["w_range"] = leaves["w_range"]
        calibration, found = _calibrated(module, variables, calibration)
        x = _applied(module, {**variables, **found}, x)
    return float(metrics.nsr(x, target, metrics.channel_variance(target)))


def random_block(block, ops, seed=0):
    """A supernet whose norms have lived: scales and biases away from one and zero."""
    params = supernet.init_block(jax.random.key(seed), block, ops)
    rng = np.random.default_rng(seed)

    def lived(place, value):
        if place[-1].key == "scale":
            return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), jnp.float32)
        if place[-1].key == "bias":
            return jnp.asarray(rng.normal(0.3, 0.5, value.shape), jnp.float32)
        return value

    return jax.tree_util.tree_map_with_path(lived, params)


def random_maps(block, images, size, seed=0):
    """Smooth-ish features: a block's input and what it shall give."""
    rng = np.random.default_rng(seed)
    out = -(-size[0] // block.stride), -(-size[1] // block.stride)
    x = rng.normal(0, 1, (images, *size, block.in_channels))
    target = rng.normal(0, 1, (images, *out, block.channels))
    return jnp.asarray(x, jnp.float32), jnp.asarray(target, jnp.float32)


def choices_of_row(block, ops, row, w_bits, a_bits):
    """A row's ops at one bitwidth."""
    path = np.unravel_index(row, (len(ops),) * block.depth)
    return tuple(space.Choice(ops[op], w_bits, a_bits) for op in path)
