"""Which device trains which blocks of the supernet on which parts of a batch.

Blocks differ in cost by ten times and more, so whole blocks alone cannot be divided evenly. The
units of work here are all pairs of a block and a part of the batch.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Costs(NamedTuple):
    """Seconds on one device for one part of a batch.

    Attributes:
      blocks: A step of each block.
      teacher: The teacher's forward pass to the end of each block; it runs once for all blocks that
        a device trains on the same part.
    """

    blocks: tuple[float, ...]
    teacher: tuple[float, ...]


class Share(NamedTuple):
    """What a device does with one part of a batch.

    Attributes:
      blocks: The blocks that it trains, in order.
      part: The number of the part.
    """

    blocks: tuple[int, ...]
    part: int


Owners = Int[np.ndarray, "parts blocks"]  # the device of each unit


def lay_out(costs: Costs, parts: int, devices: int) -> Owners:
    """Returns the device of each unit, so that the slowest device is as fast as found.

    Two beginnings are improved by moving and swapping units of the slowest device, as long as this
    helps; the better one is returned.

    Args:
      costs: What units cost.
      parts: Parts of a batch.
      devices: Number of devices. More than there are units stay idle.
    """
    begins = _consecutive(costs, parts, devices), _largest_first(costs, parts, devices)
    improved = [_improved(costs, owners, devices) for owners in begins]
    return min(improved, key=lambda owners: _worth(seconds(costs, owners, devices)))


def seconds(costs: Costs, owners: Owners, devices: int) -> list[float]:
    """Returns the time that each device takes for a step."""
    return [_seconds_of(costs, owners == device) for device in range(devices)]


def imbalance(costs: Costs, owners: Owners, devices: int) -> float:
    """Returns the time of the slowest device over the mean of all; 1 is perfect."""
    found = seconds(costs, owners, devices)
    return max(found) / (sum(found) / devices)


def shares(owners: Owners, device: int) -> tuple[Share, ...]:
    """Returns what a device does; parts with the same blocks stand side by side."""
    found = (
        Share(tuple(np.flatnonzero(row == device).tolist()), part)
        for part, row in enumerate(owners)
    )
    return tuple(sorted(share for share in found if share.blocks))


def _seconds_of(costs: Costs, mine: np.ndarray) -> float:
    """The time of the units of one device, bool[parts, blocks]."""
    last = np.where(mine.any(1), mine.shape[1] - 1 - np.argmax(mine[:, ::-1], 1), -1)
    teacher = np.array([*costs.teacher, 0.0])[last].sum()
    return float((mine @ np.array(costs.blocks)).sum() + teacher)


def _worth(found: list[float]) -> tuple[float, float]:
    return max(found), sum(found)


def _consecutive(costs: Costs, parts: int, devices: int) -> Owners:
    """Units in order, part by part, cut into pieces of equal cost."""
    each = np.tile(costs.blocks, parts)
    middle = np.cumsum(each) - each / 2
    owners = np.minimum((middle / each.sum() * devices).astype(int), devices - 1)
    return owners.reshape(parts, -1)


def _largest_first(costs: Costs, parts: int, devices: int) -> Owners:
    """One unit after another, the largest first, to the device that is done first with it."""
    owners = np.full((parts, len(costs.blocks)), -1)
    for block in np.argsort(costs.blocks, kind="stable")[::-1]:
        for part in range(parts):
            owners[part, block] = -1
            after = []
            for device in range(devices):
                mine = owners == device
                mine[part, block] = True
                after.append(_seconds_of(costs, mine))
            owners[part, block] = int(np.argmin(after))
    return owners


def _improved(costs: Costs, owners: Owners, devices: int) -> Owners:
    """The lay-out after all moves and swaps that make the slowest device faster."""
    owners = owners.copy()
    while True:
        found = seconds(costs, owners, devices)
        slowest = int(np.argmax(found))
        better, best = None, found[slowest]
        for tried, other in _changes(owners, slowest, devices):
            longer = max(_seconds_of(costs, tried == device) for device in (slowest, other))
            if longer < best * (1 - 1e-9):
                better, best = tried, longer
        if better is None:
            return owners
        owners = better


def _changes(owners: Owners, slowest: int, devices: int) -> Iterator[tuple[Owners, int]]:
    """Every lay-out that moves a unit of the slowest device, or swaps it; and the other device."""
    mine = list(zip(*np.nonzero(owners == slowest), strict=True))
    for unit, other in itertools.product(mine, range(devices)):
        if other == slowest:
            continue
        moved = owners.copy()
        moved[unit] = other
        yield moved, other
        for back in zip(*np.nonzero(owners == other), strict=True):
            swapped = moved.copy()
            swapped[back] = slowest
            yield swapped, other
