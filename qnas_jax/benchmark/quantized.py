"""A trained network of the benchmark under every policy, in one compiled program.

Policies that agree in the first blocks share their computation: the first block runs once for each
bitwidth, the second once for each pair, and only the last one once for each policy.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt8

from qnas_jax.benchmark import networks, training
from qnas_jax.benchmark.networks import Plan
from qnas_jax.benchmark.training import Images
from qnas_jax.nn import policy
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.mbconv import layer_module
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.nn.units import Mean, pixels
from qnas_jax.ptq import observe, ranges
from qnas_jax.quant import calibrate
from qnas_jax.space import MOST_BITS, largest_op

Ranges = dict[str, Float[Array, "9 2"]]


def found_ranges(plan: Plan, variables: PyTree, images: UInt8[Array, "n h w 3"]) -> Ranges:
    """Ranges of each unit's output in float, by bitwidth.

    Args:
      plan: The bitwidths, and how ranges are chosen; rows of other bitwidths are zero.
      variables: A network's `params` and `batch_stats`.
      images: Those in which the ranges are found; all values count.
    """
    model, traced = networks.widest(plan)
    units = ranges.grids(traced)
    outputs = observe.outputs(model, variables, images, [unit.name for unit in units])
    find = calibrate.RANGES[plan.ranges]
    found = {}
    for unit in units:
        bits = jnp.array(plan.bits if unit.site else (MOST_BITS,))
        rows = jax.lax.map(functools.partial(find, outputs[unit.name]), bits)
        found[unit.name] = jnp.zeros((MOST_BITS + 1, 2)).at[bits].set(rows)
    return found


def collection(plan: Plan, found: Ranges, bits: Int[Array, ""]) -> PyTree:
    """The `quant` collection in which all blocks have these bits, and all else has 8."""
    traced = networks.widest(plan).traced
    quant = networks.fresh(plan, jax.random.key(0))["quant"]
    by_unit: dict[str, Any] = {
        unit.name: (bits, bits) if unit.site else (MOST_BITS, MOST_BITS)
        for unit in traced.units
        if unit.site or unit.name in found
    }
    return ranges.with_ranges(quant, by_unit, found)


@functools.partial(jax.jit, static_argnums=0)
def right(
    plan: Plan, variables: PyTree, calibration: UInt8[Array, "m h w 3"], data: Images
) -> Int[Array, "policies"]:
    """How many images a network gives their class, under every policy.

    Args:
      plan: The bitwidths.
      variables: The network's `params`, as those of the widest one, and `batch_stats`.
      calibration: Images in which the ranges are found.
      data: The images that are counted.

    Returns:
      Counts by policy; the bitwidth of the last block changes fastest.
    """
    found = found_ranges(plan, variables, calibration)
    quants = jax.vmap(functools.partial(collection, plan, found))(jnp.array(plan.bits))
    fixed = {**variables, "quant": collection(plan, found, jnp.int32(MOST_BITS))}

    def counts(block: int, x: Array, labels: Array) -> Array:
        """Counts for every policy of the blocks from this one on, which reads `x`."""
        if block == len(plan.space.blocks):
            return jnp.sum(_head(plan, fixed, x) == labels)
        quant = policy.at(quants, networks.at_block(block))
        return jax.lax.map(
            lambda quant: counts(block + 1, of_block(plan, variables, quant, block, x), labels),
            quant,
        )

    def of_pass(part: Images) -> Array:
        return counts(0, _stem(plan, fixed, part.images), part.labels)

    return jnp.sum(jax.lax.map(of_pass, training.passes(data)), axis=0).ravel()


def of_block(plan: Plan, variables: PyTree, quant: PyTree, block: int, x: Array) -> Array:
    """The output of a block; in float where its `quant` collection is empty."""
    module = layer_module(plan.space.blocks[block], 0, largest_op(plan.space.ops))
    given = {name: policy.at(held, networks.at_block(block)) for name, held in variables.items()}
    out: Any = module.apply({**given, **({"quant": quant} if quant else {})}, x)
    return out


def _stem(plan: Plan, variables: PyTree, images: UInt8[Array, "n h w 3"]) -> Array:
    """The features that the first block reads."""
    stem, stride = plan.first.in_channels, plan.stem_stride
    return _unit(MobileNetV2(stem, plan.first, (), (), stem_stride=stride), "encoder")(
        variables, pixels(images)
    )[0]


def _head(plan: Plan, variables: PyTree, x: Array) -> Int[Array, "n"]:
    """The class of each image, from the features of the last block."""
    x = _unit(ConvBnAct(plan.head_channels), "last")(variables, x)
    x = _unit(Mean(), "mean")(variables, x)
    last = ConvBnAct(plan.classes, bounds=LINEAR, norm=False)
    return jnp.argmax(_unit(last, "classifier")(variables, x)[:, 0, 0], axis=-1)


def _unit(module: nn.Module, name: str) -> Any:
    """A part of the network as a function of the network's variables and the part's input."""

    def run(variables: PyTree, x: Array) -> Any:
        return module.apply({kind: policy.at(held, name) for kind, held in variables.items()}, x)

    return run
