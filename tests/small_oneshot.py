"""A whole network of two blocks whose ops are data, its subnets, and a run that takes seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import init
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.composed import Composed
from qnas_jax.nn.fake_quant import PIXEL_RANGE
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.oneshot import config, supernet

OPS = (space.Op(3, 2), space.Op(5, 3))
FIRST = space.Block(4, 4, 1, 1, 1)
BLOCKS = (space.Block(4, 6, 2, 1, 2), space.Block(6, 8, 1, 1, 1))
SPACE = space.Space(BLOCKS, OPS)
LAYERS = 3
CLASSES = 3


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """For tests that compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def student(subnet):
    """The network of a subnet."""
    paths = tuple(tuple(choice.op for choice in block) for block in subnet)
    return Classifier(MobileNetV2(4, FIRST, BLOCKS, paths), 8, CLASSES)


def subnet_of(path, bits=(8, 8)):
    """The subnet of a path, whose layers all have the same bitwidths, or those of a list."""
    each = [bits] * LAYERS if isinstance(bits[0], int) else bits
    choices = [space.Choice(OPS[op], *pair) for op, pair in zip(path, each, strict=True)]
    return tuple(choices[:2]), tuple(choices[2:])


NETWORK = Composed(student(subnet_of((0, 0, 0))), SPACE)


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (count, 10, 10, 3), np.uint8))


@functools.cache
def drawn():
    """Shared parameters and the variables of a teacher, all random."""
    teacher = init.initialize(NETWORK.model, jax.random.key(0), (1, 10, 10, 3))
    params = supernet.first_params(jax.random.key(1), SPACE, teacher["params"], inherited=False)
    rng = np.random.default_rng(2)  # faster than JAX's, which compiles a program for each shape

    def moved(leaf):
        return jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(moved, jax.device_get(params)), teacher


def own_variables(params, subnet):
    """The variables of a subnet's own network."""
    blocks = {}
    for number, block in enumerate(subnet):
        layers = params["blocks"][number]
        blocks[f"block{number + 1}"] = {
            f"layer{i}": layers[f"layer{i}"][str(choice.op)] for i, choice in enumerate(block)
        }
    rest = params["rest"]
    own = {**rest, "encoder": {**rest["encoder"], **blocks}}
    return {"params": own, **_fresh(student(subnet))}


def _fresh(model):
    """Statistics and ranges before the first image, at 8 bits; nothing is compiled for them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 10, 10, 3)))

    def value(path, leaf):
        kind = path[-1].key
        if (path[-2].key, kind) == ("input", "range"):
            return jnp.array(PIXEL_RANGE)
        return jnp.full(leaf.shape, 8 if kind.endswith("bits") else kind == "var", leaf.dtype)

    return {
        kind: jax.tree_util.tree_map_with_path(value, shapes[kind])
        for kind in ("batch_stats", "quant")
    }


def small(**oneshot):
    """The config of a run that takes seconds: two ops, one layer in each block."""
    defaults = {
        "steps": 4,
        "batch": 8,
        "warmup": 1,
        "images": 16,
        "images_per_pass": 16,
        "norm_images": 8,
        "budgets": (0.8,),
        "candidates": 6,
    }
    return config.Config(
        data=config.Data(source="objects", height=32, width=32, train_images=72, val_images=20),
        network=config.Network(
            width=0.1,
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=(1,) * 7,
            head_channels=16,
            dropout=0.0,
        ),
        train=config.Train(steps=4, batch=8, lr=0.05, crop=(32, 32), scale=(1.0, 1.0)),
        space=config.Space(
            kernels=(3,),
            expansions=(3, 6),
            depths=(1, 1, 1, 1, 1, 1),
            w_bits=(4, 8),
            a_bits=(4, 8),
        ),
        quantize=config.Quantize(images=8, images_per_pass=8),
        oneshot=config.Oneshot(**{**defaults, **oneshot}),
        retrain=config.Retrain(subnets=2, steps=2),
        export=config.Export(max_drop=100.0),
        run=config.Run(save_every=2, log_every=1, eval_batch=10),
    )
