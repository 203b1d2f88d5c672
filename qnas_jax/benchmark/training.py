"""Trains one network of the benchmark, whichever it is, in one compiled program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from qnas_jax.benchmark import networks
from qnas_jax.benchmark.networks import Plan
from qnas_jax.data import Objects, stacked
from qnas_jax.nn.units import pixels

WARMUP = 0.1  # share of the steps in which the learning rate rises
PASS = 125  # images that are evaluated at once: their features fit into a core's cache


class Images(NamedTuple):
    """Images and their classes.

    Attributes:
      images: uint8[n, size, size, 3].
      labels: int32[n].
    """

    images: Array
    labels: Array


def rendered(plan: Plan, split: str, count: int) -> Images:
    """The first images of a split, "train" or "val"."""
    data = Objects(0, split, plan.size, plan.size, count)
    images, labels = stacked(data, range(count))
    return Images(jnp.asarray(images), jnp.asarray(np.asarray(labels, np.int32)))


def optimizer(plan: Plan, steps: int) -> optax.GradientTransformation:
    """AdamW, with a cosine of the learning rate after a warm-up."""
    warmup = max(int(WARMUP * steps), 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, plan.lr, warmup, steps)
    return optax.adamw(rate, weight_decay=plan.weight_decay)


def batch(plan: Plan, data: Images, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Random images, flipped and moved, as floats; and their classes."""
    draw, flip, move = jax.random.split(key, 3)
    chosen = jax.random.randint(draw, (plan.batch,), 0, len(data.labels))
    images = pixels(_moved(plan, data.images[chosen], move))
    flipped = jax.random.bernoulli(flip, shape=(plan.batch,))[:, None, None, None]
    return jnp.where(flipped, images[:, :, ::-1], images), data.labels[chosen]


def _moved(
    plan: Plan, images: UInt8[Array, "n h w 3"], key: Key[Array, ""]
) -> UInt8[Array, "n h w 3"]:
    """Images moved by a few pixels each; their edges are repeated where nothing is known."""
    around = ((0, 0), (plan.shift, plan.shift), (plan.shift, plan.shift), (0, 0))
    padded = jnp.pad(images, around, mode="edge")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * plan.shift + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


@functools.partial(jax.jit, static_argnums=(0, 4))
def train(
    plan: Plan, data: Images, ops: Int[Array, "blocks"], key: Key[Array, ""], steps: int
) -> PyTree:
    """Trains the network with these ops from random weights.

    Args:
      plan: The space, and how networks are trained.
      data: The images to train on.
      ops: Places in `plan.space.ops`.
      key: What weights and batches are drawn from.
      steps: How many.

    Returns:
      Its `params`, as those of the widest network, and its `batch_stats`.
    """
    begin, batches = jax.random.split(key)
    how = optimizer(plan, steps)
    start = networks.drawn(plan, begin, ops)

    def step(state, number):
        variables, moments = state
        images, labels = batch(plan, data, jax.random.fold_in(batches, number))
        (_, stats), gradients = jax.value_and_grad(loss, argnums=1, has_aux=True)(
            plan, variables["params"], variables["batch_stats"], ops, images, labels
        )
        updates, moments = how.update(gradients, moments, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, "batch_stats": stats}, moments), None

    (found, _), _ = jax.lax.scan(step, (start, how.init(start["params"])), jnp.arange(steps))
    return found


def loss(
    plan: Plan,
    params: PyTree,
    stats: PyTree,
    ops: Int[Array, "blocks"],
    images: Float[Array, "n h w 3"],
    labels: Int[Array, "n"],
) -> tuple[Float[Array, ""], PyTree]:
    """The cross entropy of a network in training.

    Args:
      plan: The space.
      params: Parameters of the widest network.
      stats: Its statistics.
      ops: Places of the network's ops; what they do not have gets no gradient.
      images: Pixels as floats.
      labels: The classes.

    Returns:
      The mean over the images, and the new statistics.
    """
    variables = {"params": networks.masked(plan, params, ops), "batch_stats": stats}
    model = networks.widest(plan).model
    logits, new = model.apply(variables, images, True, mutable=["batch_stats"])
    each = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0, 0], labels)
    return jnp.mean(each), new["batch_stats"]


def passes(data: Images) -> Images:
    """The same images in parts that are evaluated one after the other: [passes, n, ...]."""
    count = len(data.labels)
    size = next(n for n in range(min(PASS, count), 0, -1) if count % n == 0)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), data)


@functools.partial(jax.jit, static_argnums=0)
def right(plan: Plan, variables: PyTree, data: Images) -> Int[Array, ""]:
    """How many of the images a network in float gives their class."""
    model = networks.widest(plan).model

    def of_pass(part: Images) -> Array:
        logits: Any = model.apply(variables, pixels(part.images))
        return jnp.sum(jnp.argmax(logits[:, 0, 0], axis=-1) == part.labels)

    return jnp.sum(jax.lax.map(of_pass, passes(data)))
