"""The only room that names devices and processes, and says who does what."""

import concurrent.futures
import contextlib
import ipaddress
import os
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from qnas_jax.errors import InputError

Unit = TypeVar("Unit")
Device = Any  # a jax.Device, which type checkers do not know as a type


class Groups(NamedTuple):
    """Blocks that share devices.

    Attributes:
      members: The blocks of each group.
      replicas: Devices of each group; they share a batch.
    """

    members: tuple[tuple[int, ...], ...]
    replicas: int


def check_devices() -> None:
    """Lets JAX open its devices, before any work.

    Raises:
      InputError: The devices that the environment asks for are not here.
    """
    try:
        jax.devices()
    except jax.errors.JaxRuntimeError:  # of several processes, one is gone
        raise
    except Exception as error:  # an AssertionError where a plugin is missing
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        asked = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
        told = isinstance(error, RuntimeError) and str(error)
        reason = told.splitlines()[0] if told else "JAX has no plugin for it"
        raise InputError(
            f"{', '.join(asked) or 'JAX'}: no such device here ({reason}); unset the variable, "
            "or install what JAX needs for the device"
        ) from None


def lay_out(
    cost: Callable[[tuple[int, ...]], float], blocks: int, devices: int, parts: int
) -> Groups:
    """The groups whose slowest is fastest, tried one and all: of 6 blocks there are 203.

    Args:
      cost: Of a step of a group of blocks on one device.
      blocks: Number of blocks.
      devices: Number of devices; some may be left without work.
      parts: Parts of a batch, among which the replicas of a group can be divided.
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
    """Every way to part so many blocks into at most so many groups."""
    if blocks == 0:
        yield ()
        return
    last = blocks - 1
    for groups in partitions(last, most):
        for g, group in enumerate(groups):
            yield (*groups[:g], (*group, last), *groups[g + 1 :])
        if len(groups) < most:
            yield (*groups, (last,))


def spread(units: Iterable[Unit], work: Callable[[Unit, Device], None]) -> None:
    """Does `work(unit, device)` for this process's share of the units, on all its devices.

    Every process takes each so-manieth unit and sorts its own; each of its devices takes the
    next one that is left. Whichever device does a unit, the result must be the same.
    """
    left: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    mine: list[Any] = list(units)[jax.process_index() :: jax.process_count()]
    for unit in sorted(mine):
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


def share(count: int) -> range:
    """This process's share of so many things, which must be a multiple of the processes."""
    each = count // jax.process_count()
    return range(jax.process_index() * each, (jax.process_index() + 1) * each)


def first_devices(count: int) -> list[Device]:
    """So many devices of every process, in the order of the processes."""
    return [
        device
        for process in range(jax.process_count())
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]


def address(name: str, text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT as sockets take them: an IPv6 address without its brackets.

    JAX takes the text as it is.

    Args:
      name: The flag that gives the text, for messages.
      text: An address.

    Raises:
      InputError: It is none.
    """
    host, _, port = text.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if in_brackets else host
    try:
        if in_brackets:
            ipaddress.IPv6Address(bare)
        elif not host or set(host) & set(":[]/ "):
            raise ValueError
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError
    except ValueError:
        rule = "must be HOST:PORT, with PORT from 1 to 65535 and an IPv6 address as in [::1]:1234"
        raise InputError(f"{name}={text}: {rule}") from None
    return bare, int(port)


def wait_for_port(host: str, port: int, seconds: int | float) -> None:
    """Returns once somebody listens there; JAX itself would abort the program.

    Raises:
      InputError: Nobody does for so long, or the host can be none.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except (OSError, UnicodeError) as error:  # the latter for what can be no name
            if time.monotonic() > end or isinstance(error, UnicodeError):
                raise InputError(f"{host}, port {port}: no answer ({error})") from None
        time.sleep(1)


def wait_for_all(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_same(what: str, number: int) -> None:
    """Makes sure that all processes found the same.

    Raises:
      InputError: They did not.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    found = np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist()
    if len(set(found)) > 1:
        raise InputError(
            f"{what} {found} by process: the folder does not look the same to all of them "
            "(a file system that shows changes late?); start them again"
        )


def stop_is_agreed(round_: int) -> bool:
    """Whether SIGTERM came to any of several processes: all are told in the same round.

    Rounds are numbered one by one; of a number that is left out nobody would be told.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(round_)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the body before all others do.

    Also where it fails there: the others then fail in the same place.
    """
    if not is_first():
        wait_for_all(name)
    try:
        yield
    finally:
        if is_first():
            wait_for_all(name)


def free_bytes(device: Device) -> int | None:
    """Free memory of an accelerator; None where the device does not say, as on a CPU."""
    found: dict[str, Any] | None = device.memory_stats()
    if not found or "bytes_limit" not in found:
        return None
    return found["bytes_limit"] - found.get("bytes_in_use", 0)
