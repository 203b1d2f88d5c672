"""The only room that names devices and processes."""

import concurrent.futures
import contextlib
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

Unit = TypeVar("Unit")
Device = Any  # a jax.Device, which type checkers do not know as a type


def spread(units: Iterable[Unit], work: Callable[[Unit, Device], None]) -> None:
    """Does `work(unit, device)` for this process's share of the units, on all its devices.

    Every process takes each so-manieth unit; each of its devices takes the next one that is
    left, in order. Whichever device does a unit, the result must be the same.
    """
    left: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    for unit in list(units)[jax.process_index() :: jax.process_count()]:
        left.put(unit)

    def drain(device: Device) -> None:
        with jax.default_device(device):
            while True:
                try:
                    unit = left.get_nowait()
                except queue.Empty:
                    return
                work(unit, device)

    devices = jax.local_devices()
    if len(devices) == 1:
        return drain(devices[0])
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        try:
            for future in [pool.submit(drain, device) for device in devices]:
                future.result()
        finally:  # after an error, the others end with the unit that they are at
            while not left.empty():
                left.get()


def balanced_groups(costs: Sequence[float], groups: int) -> list[list[int]]:
    """Shares units out to groups so that the largest sum of costs is the least possible.

    Tries all of the `groups ** len(costs)` ways, so it is for a handful of units.

    Args:
      costs: Of each unit, in any one measure.
      groups: How many; at most as many as there are units, as no group is left empty.

    Returns:
      The places in `costs` that each group takes.
    """

    def largest(owners):
        sums = [0.0] * groups
        for owner, cost in zip(owners, costs, strict=True):
            sums[owner] += cost
        return max(sums)

    ways = itertools.product(range(groups), repeat=len(costs))
    best = min((owners for owners in ways if len(set(owners)) == groups), key=largest)
    return [[i for i, owner in enumerate(best) if owner == g] for g in range(groups)]


def wait_for_all(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the body before all others do."""
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


def free_bytes(device: Device) -> int | None:
    """Free memory of an accelerator; None where the device does not say, as on a CPU."""
    found: dict[str, Any] | None = device.memory_stats()
    if not found or "bytes_limit" not in found:
        return None
    return found["bytes_limit"] - found.get("bytes_in_use", 0)
