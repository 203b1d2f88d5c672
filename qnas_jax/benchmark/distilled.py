"""The NSR of each op of each block, distilled from the teacher as QA-BWNAS does it.

An op learns alone: it reads the teacher's features before its block, and its target is those after
it. All ops share one compiled program for each block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from qnas_jax import metrics
from qnas_jax.benchmark import networks, quantized, training
from qnas_jax.benchmark.networks import Plan
from qnas_jax.benchmark.training import Images
from qnas_jax.nn import init, policy
from qnas_jax.nn.mbconv import MBConv, layer_module
from qnas_jax.nn.units import pixels
from qnas_jax.space import largest_op


def _module(plan: Plan, block: int) -> MBConv:
    return layer_module(plan.space.blocks[block], 0, largest_op(plan.space.ops))


def _features(plan: Plan, teacher: PyTree, block: int, images: Array) -> tuple[Array, Array]:
    """The teacher's features before and after a block."""
    model = networks.widest(plan).model
    maps: Any = model.apply(teacher, images, method="features")
    return maps[block], maps[block + 1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def distill(
    plan: Plan,
    block: int,
    teacher: PyTree,
    data: Images,
    op: Int[Array, ""],
    key: Key[Array, ""],
) -> PyTree:
    """Trains an op to imitate a block of the teacher; the loss is the NSR.

    Args:
      plan: The space, and how an op is trained.
      block: Which block, from 0.
      teacher: `params` and `batch_stats` of the teacher, the widest network.
      data: The images to train on. The first ones give the statistics of the norms in the end.
      op: The op's place in `plan.space.ops`.
      key: What weights and batches are drawn from.

    Returns:
      The op's `params`, as those of the largest op, and `batch_stats`.
    """
    module, how = _module(plan, block), training.optimizer(plan, plan.distill_steps)
    begin, batches = jax.random.split(key)
    shape = (1, plan.size, plan.size, plan.space.blocks[block].in_channels)
    fresh = init.initialize(module, begin, shape)
    start = networks.drawn_layer(plan.space, fresh["params"], op)

    def applied(params, x, train):
        variables = {"params": params, "batch_stats": fresh["batch_stats"]}
        return module.apply(variables, x, train, mutable=["batch_stats"])

    def nsr(params, x, target):
        output, _ = applied(networks.masked_layer(plan.space, params, op), x, True)
        return metrics.nsr(output, target, metrics.channel_variance(target))

    def step(state, number):
        params, moments = state
        images, _ = training.batch(plan, data, jax.random.fold_in(batches, number))
        gradients = jax.grad(nsr)(params, *_features(plan, teacher, block, images))
        updates, moments = how.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    steps = jnp.arange(plan.distill_steps)
    (params, _), _ = jax.lax.scan(step, (start, how.init(start)), steps)
    images = pixels(data.images[: plan.nsr_images])
    _, stats = applied(params, _features(plan, teacher, block, images)[0], False)
    return {"params": params, **stats}


@functools.partial(jax.jit, static_argnums=(0, 1))
def nsr_rows(
    plan: Plan,
    block: int,
    teacher: PyTree,
    learned: PyTree,
    calibration: UInt8[Array, "m h w 3"],
    images: UInt8[Array, "n h w 3"],
) -> Float[Array, "columns"]:
    """The NSR of a learned op: in float, then at each of the plan's bitwidths.

    The op reads the teacher's features in float.

    Args:
      plan: The bitwidths.
      block: The block that the op imitates, from 0.
      teacher: `params` and `batch_stats` of the teacher.
      learned: Those of the op, see `distill`.
      calibration: Images in which the ranges are found.
      images: Images that the op has not seen.
    """
    variables = {kind: jax.tree.map(lambda leaf: leaf, held) for kind, held in teacher.items()}
    for kind, held in learned.items():
        policy.at(variables[kind], networks.at_block(block)).update(held)
    found = quantized.found_ranges(plan, variables, calibration)
    x, target = _features(plan, teacher, block, pixels(images))
    variance = metrics.channel_variance(target)

    def nsr(quant: PyTree) -> Array:
        output = quantized.of_block(plan, variables, quant, block, x)
        return metrics.nsr(output, target, variance)

    def of_bits(bits: Array) -> Array:
        quant = quantized.collection(plan, found, bits)
        return nsr(policy.at(quant, networks.at_block(block)))

    return jnp.concatenate([nsr({})[None], jax.lax.map(of_bits, jnp.array(plan.bits))])


def nsr_of_block(
    plan: Plan, block: int, teacher: PyTree, train: Images, val: Images
) -> Float[np.ndarray, "ops columns"]:
    """Distils every op of a block, and returns their NSR; see `nsr_rows`."""
    key = jax.random.fold_in(jax.random.key(1), block)
    images = train.images[: plan.calibration_images], val.images[: plan.nsr_images]
    rows = []
    for op in range(len(plan.space.ops)):
        place = jnp.int32(op)
        learned = distill(plan, block, teacher, train, place, jax.random.fold_in(key, op))
        rows.append(nsr_rows(plan, block, teacher, learned, *images))
    return np.stack(jax.device_get(rows))
