"""The distillation step over groups of blocks, each group on its own devices.

`jax.pmap` needs arrays of one shape on all devices, and blocks differ. So the state of a group
is one flat vector, padded to the longest, and `lax.switch` selects the group's own work, a real
conditional on each device. The replicas of a group share the batch and add up their gradients;
groups exchange nothing but the NSR of each block.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from qnas_jax import space
from qnas_jax.bwnas import distill
from qnas_jax.kernels import convolution
from qnas_jax.nn.trace import Unit, convs
from qnas_jax.run.parallel import Device
from qnas_jax.train import loop

AXIS = "devices"
BACKWARD = 2  # passes forward that one backward costs
PROBE_CHANNELS, PROBE_KERNEL, PROBE_REPEATS = 192, 5, 5  # typical of blocks; see `depthwise_cost`


class Groups(NamedTuple):
    """Which blocks share devices.

    Attributes:
      members: The blocks of each group.
      replicas: Devices of each group; they share a batch.
    """

    members: tuple[tuple[int, ...], ...]
    replicas: int


def lay_out(
    cost: Callable[[tuple[int, ...]], float], blocks: int, devices: int, parts: int
) -> Groups:
    """The groups whose slowest is fastest, by exhaustive search: 6 blocks have 203 partitions.

    Args:
      cost: Of a step of a group of blocks on one device.
      blocks: Number of blocks.
      devices: Number of devices; some may get no work.
      parts: Parts of a batch, a multiple of the replicas of a group.
    """
    candidates = [
        (cost_of_slowest(cost, members) / replicas, replicas, members)
        for replicas in range(1, min(parts, devices) + 1)
        if parts % replicas == 0
        for members in partitions(blocks, min(blocks, devices // replicas))
    ]
    _, replicas, members = min(candidates)
    return Groups(members, replicas)


def cost_of_slowest(
    cost: Callable[[tuple[int, ...]], float], members: tuple[tuple[int, ...], ...]
) -> float:
    """Cost of the group that all others wait for."""
    return max(cost(group) for group in members)


def partitions(blocks: int, most: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every way to divide `blocks` blocks into at most `most` groups."""
    if blocks == 0:
        yield ()
        return
    last = blocks - 1
    for groups in partitions(last, most):
        for g, group in enumerate(groups):
            yield (*groups[:g], (*group, last), *groups[g + 1 :])
        if len(groups) < most:
            yield (*groups, (last,))


def depthwise_cost(height: int, width: int) -> float:
    """How long a depthwise multiply-accumulate takes over one of a 1x1 convolution, measured.

    Forward and backward on this process's first device, on features of that size; takes
    a second or two.
    """
    x = jnp.ones((1, height, width, PROBE_CHANNELS))
    dense = jnp.ones((PROBE_CHANNELS, PROBE_CHANNELS))
    taps = jnp.ones((PROBE_KERNEL, PROBE_KERNEL, PROBE_CHANNELS))
    filtered = functools.partial(convolution.depthwise, stride=1, dilation=1)
    seconds = [
        _gradient_seconds(convolve, x, w) / w.size  # weights: as many products for each pixel
        for convolve, w in ((filtered, taps), (convolution.pointwise, dense))
    ]
    return seconds[0] / seconds[1]


def _gradient_seconds(convolve, x, w) -> float:
    run = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.square(convolve(x, w))), (0, 1)))
    jax.block_until_ready(run(x, w))
    times = []
    for _ in range(PROBE_REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(run(x, w))
        times.append(time.perf_counter() - begin)
    return min(times)


def step_cost(
    searched: space.Space,
    shape: tuple[int, int],
    teacher: Sequence[Unit],
    depthwise: float,
) -> Callable[[tuple[int, ...]], float]:
    """What a step of a group of blocks costs on one device, in products of two numbers.

    Args:
      searched: Blocks and ops; every op is trained once a step, as fair sampling does.
      shape: Height and width of the input of the first block.
      teacher: Units of its encoder; they run forward as far as the group's last block.
      depthwise: Products that a multiply-accumulate of a depthwise convolution costs; see
        `depthwise_cost`.
    """

    def cost(layers):
        return sum(conv.macs * (depthwise if conv.groups > 1 else 1) for conv in layers)

    blocks, teachers = [], []
    height, width = shape
    for i, block in enumerate(searched.blocks):
        layers = space.block_convs(block, searched.ops, (height, width))
        blocks.append((1 + BACKWARD) * sum(map(cost, layers)))
        height, width = -(-height // block.stride), -(-width // block.stride)
        needed = [unit for unit in teacher if not unit.site or unit.site.block <= i]
        teachers.append(cost(convs(needed)))
    return lambda group: sum(blocks[i] for i in group) + teachers[max(group)]


class Grouped(NamedTuple):
    """The steps over groups, and the layout of their state.

    Attributes:
      steps: Several steps, for `loop.fit`.
      layout: Their state, [local devices, longest group], from the states of all blocks, and
        the reverse.
    """

    steps: loop.Steps
    layout: loop.Layout


def train_step(
    recipe: distill.Recipe,
    teacher: PyTree,
    like: distill.State,
    groups: Groups,
    devices: Sequence[Device],
) -> Grouped:
    """`distill.train_step` over groups of blocks, with the same numbers.

    Every process holds all groups, and reads its own share of the batch.

    Args:
      recipe: How the blocks are trained.
      teacher: The teacher's variables.
      like: A state, for its structure.
      groups: Which blocks go together, and how many devices of a process each group has.
      devices: Those of all processes in order, as many of each process.
    """
    work = _Work(recipe, like, groups)
    blocks, here = len(like), len(groups.members) * groups.replicas
    processes = len(devices) // here
    sharers = processes * groups.replicas
    numbers = range(len(groups.members))
    gradients_of = [functools.partial(work.gradients, g, recipe.parts // sharers) for g in numbers]
    updated = [functools.partial(work.updated, g) for g in numbers]
    places = np.arange(len(devices)).reshape(processes, -1, groups.replicas)
    same = places.swapaxes(0, 1).reshape(len(numbers), -1).tolist()

    def device_steps(teacher, flat, images, numbers):
        group = lax.axis_index(AXIS) % here // groups.replicas

        def one(flat, given):
            images, number = given
            nsr, gradients = lax.switch(group, gradients_of, teacher, flat, images, number)
            gradients = lax.psum(gradients, AXIS, axis_index_groups=same) / sharers
            flat = lax.switch(group, updated, flat, gradients, number)
            return flat, lax.psum(nsr, AXIS) / sharers

        return loop.scanned(one, flat, (images, numbers))

    mapped: Any = jax.pmap(
        device_steps, AXIS, in_axes=(0, 0, 0, None), devices=devices, donate_argnums=1
    )
    # The teacher is laid out once, not at every step.
    copy: Any = jax.pmap(lambda _, teacher: teacher, in_axes=(0, None), devices=devices)
    teacher = copy(np.zeros(here), teacher)
    names = [distill.metric(i) for i in range(blocks)]
    by_block = jax.jit(lambda nsr: dict(zip(names, nsr[0].T, strict=True)))

    def steps(flat, images, labels, numbers):
        del labels  # the teacher's features are the target
        shares = images.reshape(len(images), groups.replicas, -1, *images.shape[2:])
        shares = np.concatenate([shares.swapaxes(0, 1)] * len(groups.members))
        flat, nsr = mapped(teacher, flat, shares, numbers)
        return flat, by_block(nsr.addressable_data(0))

    return Grouped(steps, loop.Layout(work.spread, work.gather))


class _Work:
    """The work of each group on flat vectors: states of one length, gradients of another."""

    def __init__(self, recipe: distill.Recipe, like: distill.State, groups: Groups):
        self._recipe, self._groups, self._blocks = recipe, groups, len(like)
        states = [tuple(like[i] for i in members) for members in groups.members]
        self._states = [ravel_pytree(state) for state in states]
        self._params = [ravel_pytree([block.params for block in state]) for state in states]
        self._state_size = max(flat.size for flat, _ in self._states)
        self._params_size = max(flat.size for flat, _ in self._params)

    def gradients(self, g, parts, teacher, flat, images, number):
        """A group's NSR by block, and its gradients."""
        # The compiler drops the teacher's layers after the last map that the group reads.
        maps = self._recipe.features(teacher, images)
        nsr, found = jnp.zeros(self._blocks), []
        for i, state in zip(self._groups.members[g], self._unravel(g, flat), strict=True):
            one, gradients = distill.block_gradients(
                self._recipe, i, state.params, maps, number, parts
            )
            nsr = nsr.at[i].set(one)
            found.append(gradients)
        return nsr, _padded(found, self._params_size)

    def updated(self, g, flat, gradients, number):
        """A group's state after a step."""
        like, unravel = self._params[g]
        states = [
            distill.updated(self._recipe, i, state, of_block, number)
            for i, state, of_block in zip(
                self._groups.members[g],
                self._unravel(g, flat),
                unravel(gradients[: like.size]),
                strict=True,
            )
        ]
        return _padded(tuple(states), self._state_size)

    def spread(self, state: distill.State) -> np.ndarray:
        """One row for each device of this process."""
        rows = [
            _padded(tuple(state[i] for i in members), self._state_size)
            for members in self._groups.members
        ]
        return np.repeat(np.stack(rows), self._groups.replicas, axis=0)

    def gather(self, flat: Array) -> distill.State:
        """The states of all blocks, each from the first replica of its group."""
        state: dict[int, distill.BlockState] = {}
        for g, members in enumerate(self._groups.members):
            row = np.asarray(flat.addressable_data(g * self._groups.replicas)).ravel()
            state |= dict(zip(members, self._unravel(g, jnp.asarray(row)), strict=True))
        return tuple(state[i] for i in range(self._blocks))

    def _unravel(self, g, flat):
        like, unravel = self._states[g]
        return unravel(flat[: like.size])


def _padded(tree: PyTree, size: int) -> Array:
    flat = ravel_pytree(tree)[0]
    return jnp.pad(flat, (0, size - flat.size))
