"""Devices and processes: which of them does what, and where they wait for each other."""

import concurrent.futures
import contextlib
import ipaddress
import os
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from qnas_jax.errors import InputError

Unit = TypeVar("Unit")
Device = Any  # a jax.Device, which type checkers do not know as a type


def check_devices() -> None:
    """Lets JAX open its devices, before any work.

    Raises:
      InputError: The devices that the environment asks for are missing.
    """
    try:
        jax.devices()
        jax.device_put(0)  # on the default device, which the first line does not ask for
    except jax.errors.JaxRuntimeError:  # of several processes, one is gone
        raise
    except Exception as error:  # an AssertionError where a plugin is missing
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE")
        asked = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
        text = isinstance(error, RuntimeError) and str(error)
        reason = text.splitlines()[0] if text else "JAX has no plugin for it"
        raise InputError(
            f"{', '.join(asked) or 'JAX'}: no such device here ({reason}); unset the variable, "
            "or install what JAX needs for the device"
        ) from None


def spread(units: Iterable[Unit], work: Callable[[Unit, Device], None]) -> None:
    """Runs `work(unit, device)` for this process's share of the units, on all its devices.

    Of n processes, each takes every n-th unit and sorts its own; each of its devices takes the
    next unit that is left. The result must not depend on the device.

    Args:
      units: All units, the same in every process.
      work: Runs one unit. Its first exception is raised here; the other devices then finish
        the units that they are at, and take no more.
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
                try:
                    work(unit, device)
                except BaseException:  # the other devices must not run all remaining units
                    _drop(left)
                    raise

    devices = jax.local_devices()
    if len(devices) == 1:
        return drain(devices[0])
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        try:
            for future in [pool.submit(drain, device) for device in devices]:
                future.result()
        finally:  # this thread may be interrupted
            _drop(left)


def _drop(units: queue.SimpleQueue) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            units.get_nowait()


def share(count: int) -> range:
    """This process's share of `count` things; `count` is a multiple of the processes."""
    each = count // jax.process_count()
    return range(jax.process_index() * each, (jax.process_index() + 1) * each)


def first_devices(count: int) -> list[Device]:
    """The first `count` devices of every process, in the order of the processes."""
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
      InputError: It is not such an address.
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
    """Waits until a process listens there; JAX itself would abort the program.

    Raises:
      InputError: No process does in that time, or this cannot be a host.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except (OSError, UnicodeError) as error:  # the latter if it cannot be a name
            if time.monotonic() > end or isinstance(error, UnicodeError):
                raise InputError(f"{host}, port {port}: no answer ({error})") from None
        time.sleep(1)


def wait_for_all(name: str) -> None:
    """Waits until every process has called this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_same(what: str, number: int) -> None:
    """Checks that all processes found the same number.

    Raises:
      InputError: They found different ones.
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
    """Whether any of several processes got SIGTERM; all get the same answer in the same round.

    Rounds must be numbered without gaps, or the signal is missed.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(round_)


def is_first() -> bool:
    """Whether this is the process that writes files which all share."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the body before all others.

    If it fails, the others still run the body, and fail in the same place.
    """
    if not is_first():
        wait_for_all(name)
    try:
        yield
    finally:
        if is_first():
            wait_for_all(name)


def free_bytes(device: Device) -> int | None:
    """Free memory of an accelerator; None if the device does not report it, as on a CPU."""
    found: dict[str, Any] | None = device.memory_stats()
    if not found or "bytes_limit" not in found:
        return None
    return found["bytes_limit"] - found.get("bytes_in_use", 0)
