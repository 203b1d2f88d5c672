"""The distillation step on several devices: each trains its own blocks on its own parts of a batch.

Every device holds the whole state, which is small (80 MB for Table I with its momentum). Under
`jax.pmap`, `lax.switch` selects a device's own list of work, a real conditional on each device. The
gradients are added up over all devices outside of it, and each device updates all blocks.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree

from qnas_jax.bwnas import balance, distill
from qnas_jax.bwnas.balance import Costs, Owners
from qnas_jax.kernels.forms import shortest_seconds
from qnas_jax.run.parallel import Device
from qnas_jax.train import loop

AXIS = "devices"

# What a device does, without the numbers of its parts: the blocks of each run of equal parts, and
# how many they are. Devices that do the same share a program.
Pattern = tuple[tuple[tuple[int, ...], int], ...]


def measured(recipe: distill.Recipe, teacher: PyTree, state: distill.State, images: Any) -> Costs:
    """Returns what units of work cost on this process's first device; compiles each block.

    Args:
      recipe: How the blocks are trained.
      teacher: The teacher's variables.
      state: A state.
      images: One part of a batch.
    """
    blocks = range(len(state))
    maps = jax.jit(recipe.features)(teacher, images)
    forward = [
        jax.jit(lambda teacher, images, i=i: recipe.features(teacher, images)[i + 1])
        for i in blocks
    ]
    trained = [
        jax.jit(functools.partial(distill.block_gradients, recipe, i, parts=1)) for i in blocks
    ]
    number = jnp.int32(0)
    return Costs(
        tuple(shortest_seconds(trained[i], state[i].params, maps, number) for i in blocks),
        tuple(shortest_seconds(run, teacher, images) for run in forward),
    )


class Divided(NamedTuple):
    """The steps over several devices.

    Attributes:
      steps: Several steps, for `loop.fit`.
      layout: Their state, a copy on each device, from the states of all blocks; and the reverse.
      places: The images of a batch that this process reads.
    """

    steps: loop.Steps
    layout: loop.Layout
    places: tuple[int, ...]


def train_step(
    recipe: distill.Recipe,
    teacher: PyTree,
    owners: Owners,
    devices: Sequence[Device],
    batch: int,
) -> Divided:
    """`distill.train_step` over devices, with the same numbers.

    Args:
      recipe: How the blocks are trained.
      teacher: The teacher's variables.
      owners: The device of each unit of work; see `balance.lay_out`.
      devices: Those of all processes in order.
      batch: Images of a step, a multiple of the parts.
    """
    work = [balance.shares(owners, device) for device in range(len(devices))]
    patterns = [_pattern(shares) for shares in work]
    different = sorted(set(patterns))
    kinds = jnp.array([different.index(pattern) for pattern in patterns])
    branches = [functools.partial(_gradients, recipe, pattern) for pattern in different]

    def device_steps(teacher, state, images, numbers):
        kind = kinds[lax.axis_index(AXIS)]

        def one(state, given):
            images, number = given
            params = [block.params for block in state]
            found = lax.switch(kind, branches, teacher, params, images, number)
            nsr, gradients = jax.tree.map(lambda x: x / recipe.parts, lax.psum(found, AXIS))
            updated = [
                distill.updated(recipe, i, state[i], gradients[i], number)
                for i in range(len(state))
            ]
            return tuple(updated), nsr

        return loop.scanned(one, state, (images, numbers))

    mapped: Any = jax.pmap(
        device_steps, AXIS, in_axes=(0, 0, 0, None), devices=devices, donate_argnums=1
    )
    copied = functools.partial(_on_each, devices)
    teacher = copied(teacher)  # once, not at every step
    size = batch // recipe.parts
    mine = [work[i] for i, device in enumerate(devices) if device in jax.local_devices()]
    order, slots = _read(mine, max(map(len, work)))
    by_block = jax.jit(
        lambda nsr: {distill.metric(i): nsr[0, :, i] for i in range(owners.shape[1])}
    )

    def steps(state, images, labels, numbers):
        del labels  # the teacher's features are the target
        in_parts = images.reshape(len(images), len(order), size, *images.shape[2:])
        of_devices = in_parts[:, slots].swapaxes(0, 1)  # [devices, steps, slots, size, ...]
        state, nsr = mapped(teacher, state, of_devices, numbers)
        return state, by_block(nsr.addressable_data(0))

    places = tuple(part * size + i for part in order for i in range(size))
    return Divided(steps, loop.Layout(copied, _gathered), places)


def _pattern(shares: Sequence[balance.Share]) -> Pattern:
    runs = itertools.groupby(share.blocks for share in shares)
    return tuple((blocks, len(list(equal))) for blocks, equal in runs)


def _gradients(
    recipe: distill.Recipe, pattern: Pattern, teacher: PyTree, params: list, images: Array, number
) -> tuple[Array, list]:
    """The sums over a device's units of NSR and gradients, of all blocks.

    Args:
      recipe: How the blocks are trained.
      pattern: What the device does.
      teacher: The teacher's variables.
      params: Those of all blocks.
      images: [slots, images of a part, h, w, 3]; one slot for each part that the device reads.
      number: Of the step.
    """
    total = jnp.zeros(len(params)), jax.tree.map(jnp.zeros_like, params)

    def add(blocks, total, of_part):
        # The compiler drops the teacher's layers after the last map that is read.
        maps = recipe.features(teacher, of_part)
        nsr, gradients = total[0], list(total[1])
        for i in blocks:
            one, found = distill.block_gradients(recipe, i, params[i], maps, number, 1)
            nsr = nsr.at[i].add(one)
            gradients[i] = jax.tree.map(jnp.add, gradients[i], found)
        return nsr, gradients

    slot = 0
    for blocks, count in pattern:
        given = images[slot : slot + count]
        total = loop.scanned(lambda t, x, b=blocks: (add(b, t, x), None), total, given)[0]
        slot += count
    return total


def _read(
    mine: Sequence[Sequence[balance.Share]], slots: int
) -> tuple[list[int], Int[np.ndarray, "devices slots"]]:
    """The parts that the devices of a process read, each part once.

    Args:
      mine: What each of these devices does.
      slots: Places for parts, the same number for all devices of all processes.

    Returns:
      The numbers of the parts; and for each device the places of its parts among them. What is
      left of its slots has some part, in vain.
    """
    order = sorted({share.part for shares in mine for share in shares}) or [0]
    places = np.zeros((len(mine), slots), int)
    for row, shares in zip(places, mine, strict=True):
        row[: len(shares)] = [order.index(share.part) for share in shares]
    return order, places


def _on_each(devices: Sequence[Device], tree: PyTree) -> PyTree:
    """A copy of all arrays on each device, with a leading axis for the devices of this process."""
    here = sum(device in jax.local_devices() for device in devices)
    copy: Any = jax.pmap(lambda _, tree: tree, in_axes=(0, None), devices=devices)
    return copy(np.zeros(here), tree)


def _gathered(state: PyTree) -> PyTree:
    """The copy of this process's first device."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf.addressable_data(0))[0]), state)
