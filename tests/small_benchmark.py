"""A benchmark that is made in seconds: two blocks, two ops, two bitwidths, a few steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.benchmark import networks, training
from qnas_jax.nn.units import pixels
from qnas_jax.space import Block, Op, Space, largest_op

BLOCKS = (
    Block(4, 4, stride=1, dilation=1, depth=1),
    Block(4, 8, stride=2, dilation=1, depth=1),
)
PLAN = dataclasses.replace(
    networks.PLAN,
    space=Space(BLOCKS, (Op(3, 2), Op(5, 4))),
    bits=(8, 3),
    seeds=2,
    first=Block(4, 4, stride=1, dilation=1, depth=1),
    head_channels=8,
    size=12,
    train_images=24,
    val_images=24,
    calibration_images=8,
    nsr_images=16,
    steps=3,
    teacher_steps=3,
    distill_steps=2,
    batch=8,
    shift=1,
)
MIXED = (0, 1)  # the ops of a network with both


def images(count=24, seed=0):
    """Random images and classes."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 256, (count, PLAN.size, PLAN.size, 3), np.uint8)
    labels = rng.integers(0, PLAN.classes, count, np.int32)
    return training.Images(jnp.asarray(drawn), jnp.asarray(labels))


@functools.cache
def trained(ops=(0, 1)):
    """A network's variables after a few steps, its statistics those of the images."""
    key, data = jax.random.key(0), images()
    found = training.train(PLAN, data, jnp.array(ops, jnp.int32), key, PLAN.steps)
    model = networks.widest(PLAN).model
    apply = jax.jit(lambda given, x: model.apply(given, x, mutable=["batch_stats"])[1])
    return {**found, **apply(found, pixels(data.images))}


def own(variables, ops=MIXED):
    """Variables of the widest network as the network with these ops takes them."""
    found = jax.tree.map(lambda leaf: leaf, variables)
    most = largest_op(PLAN.space.ops)
    for block, place in enumerate(ops):
        op = PLAN.space.ops[place]
        hidden = PLAN.space.blocks[block].in_channels * op.expansion
        around = (most.kernel - op.kernel) // 2
        inside = slice(around, most.kernel - around)
        for held in found.values():
            layer = held["encoder"][f"block{block + 1}"]["layer0"]
            for part in ("expand", "depthwise"):
                layer[part] = jax.tree.map(lambda leaf, n=hidden: leaf[..., :n], layer[part])
            if "kernel" in layer["depthwise"]:
                layer["depthwise"]["kernel"] = layer["depthwise"]["kernel"][inside, inside]
                layer["project"]["kernel"] = layer["project"]["kernel"][:, :, :hidden]
    return found
