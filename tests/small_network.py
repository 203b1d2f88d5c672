"""A small network that has everything a large one has, calibrated but not trained."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.export import fold
from qnas_jax.export.graph import Graph
from qnas_jax.nn import init, mobilenet, policy
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.trace import trace
from qnas_jax.profiling import slices, synthetic
from qnas_jax.train import supervised

SHAPE = (33, 47, 3)
FIRST = space.Block(8, 8, 1, 1, 1)
BLOCKS = (space.Block(8, 8, 2, 1, 2), space.Block(8, 16, 1, 2, 1))
PATHS = ((space.Op(3, 3), space.Op(5, 2)), (space.Op(7, 2),))
INT8, MIXED = ((8, 8),) * 2, ((6, 4), (4, 6))  # weights, activations, by block


class Case(NamedTuple):
    model: DeepLabV3
    variables: Any
    quant: Any
    images: np.ndarray
    network: Graph
    floats: Graph

    @property
    def quantized(self):
        return {**self.variables, "quant": self.quant}


def lived(variables, seed=0):
    """Batch norms as training may leave them: a fifth of the scales negative, one zero."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        match path[-1].key:
            case "scale":
                signs = rng.choice([-1, 1], leaf.shape, p=[0.2, 0.8])
                new = rng.uniform(0.5, 1.5, leaf.shape) * signs
                new[-1] = 0
            case "bias":
                new = rng.normal(0.3, 0.5, leaf.shape)
            case "mean":
                new = rng.normal(0, 0.3, leaf.shape)
            case "var":
                new = rng.uniform(0.5, 2, leaf.shape)
            case _:
                return leaf
        return jnp.asarray(new, jnp.float32)

    return jax.tree_util.tree_map_with_path(value, variables)


@functools.cache
def _fresh():
    """The network, its variables, images, and what calibrates it; compiled once."""
    encoder = mobilenet.MobileNetV2(8, FIRST, BLOCKS, PATHS)
    model = DeepLabV3(encoder, 16, (2, 3), 5)
    fresh = init.initialize(model, jax.random.key(0), (1, *SHAPE))
    variables = lived({name: fresh[name] for name in ("params", "batch_stats")})
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)

    @jax.jit
    def calibrated(quant):
        pixels = supervised.pixels(jnp.asarray(images))
        return model.apply({**variables, "quant": quant}, pixels, mutable=["quant"])[1]["quant"]

    return model, jax.device_get(variables), fresh["quant"], images, calibrated


def make_case(bits):
    model, variables, quant, images, calibrated = _fresh()
    subnet = tuple(
        tuple(space.Choice(op, *pair) for op in path)
        for path, pair in zip(PATHS, bits, strict=True)
    )
    quant = jax.device_get(calibrated(policy.with_bits(quant, trace(model, SHAPE), subnet)))
    network, floats = (fold.fold(model, variables, q, SHAPE, resize=True) for q in (quant, None))
    return Case(model, variables, quant, images, network, floats)


def layers_alone(block, ops, bits, shape):
    """Layers that read such a shape, cut out of a made-up network; in float without bits."""
    height, width, channels = shape
    first = space.Block(channels, channels, 1, 1, 1)
    encoder = mobilenet.MobileNetV2(channels, first, (block,), (ops,))
    bits_by_layer = [[bits] * len(ops)] if bits else None
    image_shape = (2 * height, 2 * width, 3)
    traced = trace(DeepLabV3(encoder, 8, (1,), 5), image_shape)
    whole = synthetic.network(traced, bits_by_layer)
    return slices.chained(list(slices.layers(whole).values())[1:-1])


@pytest.fixture(scope="session")
def int8():
    return make_case(INT8)


@pytest.fixture(scope="session")
def mixed():
    return make_case(MIXED)
