"""Trains whole networks on several devices: they share each batch, or each trains another network.

Where they share a batch, each has all weights. The program is that of one device. The compiler
divides it by images and adds up over devices what depends on all of them: gradients, and the
statistics of batch norms. So the numbers are those of one device, up to the order of sums.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from qnas_jax.errors import InputError
from qnas_jax.run import parallel, processes
from qnas_jax.train import loop

logger = logging.getLogger(__name__)

BATCH = "batch"  # the axis of the mesh


def devices_for(batch: int, processes: int, each: int) -> int:
    """Returns how many devices of every process can share a batch equally.

    Args:
      batch: Number of images.
      processes: Number of processes.
      each: Devices of a process.
    """
    share = batch // processes
    return max(count for count in range(1, min(each, share) + 1) if share % count == 0)


def check_batch(name: str, batch: int) -> None:
    """Checks that the processes can share a batch, before anything takes long.

    Raises:
      InputError: They cannot; `name` is that of the setting.
    """
    count = parallel.team().count
    if batch % count:
        rule = f"must be a multiple of the number of processes, {count}"
        raise InputError(f"{name}={batch}: {rule}")


def layout(batch: int) -> loop.Layout:
    """Returns the layout of a training whose steps read `batch` images.

    The devices are those of the team, or as many as can share the batch equally.
    """
    check_batch("the batch", batch)
    team = parallel.team()
    count = devices_for(batch, team.count, len(team.devices))
    if count * team.count == 1:
        return loop.AS_SAVED
    devices = parallel.first_devices(count)
    processes.connect(devices)
    mesh = Mesh(np.array(devices), (BATCH,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec(None, BATCH))  # the first axis is that of steps

    def place(arrays: Any) -> Any:
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(divided, array), arrays
        )

    return loop.Layout(lambda state: parallel.on_all(everywhere, state), here, place)


def here(tree: PyTree) -> PyTree:
    """Returns the copies on this process's first device."""
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)), "a divided state"
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def width_for(networks: int, batch: int, devices: int) -> int:
    """Returns how many devices should share a batch, where several networks are to be trained.

    Groups of so many devices train one network each, side by side. The estimate counts images: a
    device takes as long as it has images. Between equals it prefers few devices to a network,
    which have less to exchange.

    Args:
      networks: Number of networks, each trained for as long.
      batch: Images of a step.
      devices: Number of devices.
    """

    def images_in_turn(width: int) -> float:
        rounds = -(-networks // (devices // width))
        return rounds * batch / devices_for(batch, 1, width)

    return min(range(1, devices + 1), key=lambda width: (images_in_turn(width), width))


def train_all(batch: int, trainings: Sequence[Callable[[], Any]]) -> None:
    """Runs trainings of whole networks, side by side where this is faster.

    Several processes share each batch, and run one training after another. A CPU that is one
    device runs two at a time, see `parallel.side_by_side`.

    Args:
      batch: Images of a step.
      trainings: Functions that train one network each, with `layout`.
    """
    team = parallel.team()
    width = width_for(max(len(trainings), 1), batch, len(team.devices))
    if team.count > 1:
        for train in trainings:
            train()
        return
    if width == len(team.devices):
        parallel.side_by_side(trainings)
        return
    starts = range(0, len(team.devices) - width + 1, width)[: len(trainings)]
    groups = [team.devices[start : start + width] for start in starts]
    title = "%d networks are trained side by side, each on %d of %d devices"
    logger.info(title, len(groups), width, len(team.devices))
    parallel.one_by_one(groups, trainings, lambda train, _: train())
