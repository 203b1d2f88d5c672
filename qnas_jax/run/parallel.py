"""Devices, and the processes that work together: which of them does what.

Code asks `team()` and not JAX, because a part of a run may be done by one process alone.
"""

import concurrent.futures
import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.run import preempt

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Device = Any  # a jax.Device, which type checkers do not know as a type


class Team(NamedTuple):
    """The processes that work together, as this one sees them.

    Attributes:
      count: Their number.
      index: The number of this one, from 0.
      devices: The devices of this process that take part.
      writes: Whether this process writes the files that all share.
    """

    count: int
    index: int
    devices: tuple[Device, ...]
    writes: bool


_GIVEN_UP: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "given_up", default=None
)
_TEAM: contextvars.ContextVar[Team | None] = contextvars.ContextVar("team", default=None)


def team() -> Team:
    """Returns the processes that work together; by default all with all of their devices."""
    index = jax.process_index()
    everyone = Team(jax.process_count(), index, tuple(jax.local_devices()), index == 0)
    return _TEAM.get() or everyone


@contextlib.contextmanager
def alone(devices: Sequence[Device] = (), writes: bool = True) -> Iterator[None]:
    """Within, this process works without the others, in this thread.

    Args:
      devices: Those that it uses; by default all of its own.
      writes: Whether it writes files.
    """
    used = tuple(devices) or team().devices
    token = _TEAM.set(Team(1, 0, used, writes))
    try:
        with jax.default_device(used[0]) if devices else contextlib.nullcontext():
            yield
    finally:
        _TEAM.reset(token)


def is_first() -> bool:
    """Whether this is the process that writes files which all share."""
    return team().writes


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
    mine: list[Any] = list(units)[team().index :: team().count]
    one_by_one([[device] for device in team().devices], sorted(mine), work)


def one_by_one(
    groups: Sequence[Sequence[Device]],
    units: Sequence[Unit],
    work: Callable[[Unit, Device], None],
) -> None:
    """Runs `work(unit, first device of a group)` for all units; each group takes the next unit.

    Groups work side by side, each in a thread of its own, where `team()` is the group; raises like
    `spread`.
    """
    left, writes = _queue(units), is_first()

    def drain(group: Sequence[Device]) -> None:
        with alone(group, writes):
            for unit in _taken(left):
                work(unit, group[0])

    _in_threads([functools.partial(drain, group) for group in groups])


def side_by_side(works: Sequence[Callable[[], Result]]) -> list[Result]:
    """Calls functions that do not depend on each other, and returns their results; see `spread`.

    On a CPU two at a time, because compilation, Python and small operations use one core only. An
    accelerator has one at a time, for its memory, and so have several devices, which may exchange
    something.
    """
    found: dict[int, Result] = {}
    left = _queue(range(len(works)))

    def drain() -> None:
        for place in _taken(left):
            found[place] = works[place]()

    platforms = [device.platform for device in team().devices]
    at_once = min(2, os.cpu_count() or 1) if platforms == ["cpu"] else 1
    _in_threads([drain] * min(at_once, max(len(works), 1)))
    return [found[place] for place in range(len(works))]


def _queue(units: Iterable[Unit]) -> "queue.SimpleQueue[Unit]":
    left: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    for unit in units:
        left.put(unit)
    return left


def _taken(left: "queue.SimpleQueue[Unit]") -> Iterator[Unit]:
    """Yields the units that are left, until a thread has failed."""
    while not is_given_up():
        try:
            yield left.get_nowait()
        except queue.Empty:
            return


def _in_threads(drains: Sequence[Callable[[], None]]) -> None:
    """Calls all functions at the same time; a single one in this thread."""
    given_up = threading.Event()

    def begin(drain: Callable[[], None]) -> None:
        _GIVEN_UP.set(given_up)
        drain()

    contexts = [contextvars.copy_context() for _ in drains]  # the team, which is this thread's
    if len(drains) == 1:
        return contexts[0].run(begin, drains[0])
    with concurrent.futures.ThreadPoolExecutor(len(drains)) as pool:
        try:
            running = [
                pool.submit(context.run, begin, drain)
                for context, drain in zip(contexts, drains, strict=True)
            ]
            concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_EXCEPTION)
            for future in running:
                if future.done():
                    future.result()
        except BaseException:  # of a thread, or this one is interrupted
            given_up.set()
            with preempt.ignored():  # the signal may come twice; the threads still save their work
                pool.shutdown()
            raise


def is_given_up() -> bool:
    """Whether long work beside other work should end, because that has failed."""
    given_up = _GIVEN_UP.get()
    return given_up is not None and given_up.is_set()


def on_each_device(run: Callable, constants: Any) -> Callable:
    """Returns `run` without its first argument, which is copied to each device that it runs on.

    Args:
      run: A function (constants, ...) -> outputs, for the work of `spread`.
      constants: A pytree of arrays.
    """
    host, copies = jax.device_get(constants), {}

    def on_device(*given: Any) -> Any:
        device = team().devices[0]
        if device not in copies:  # two threads never have the same device
            copies[device] = jax.device_put(host, device)
        return run(copies[device], *given)

    return on_device


def on_all(everywhere: jax.sharding.Sharding, tree: Any) -> Any:
    """Returns copies of arrays on all devices of a sharding; every process has the same arrays."""

    def copied(leaf: Any) -> jax.Array:
        if everywhere.is_fully_addressable:
            return jax.device_put(jnp.copy(leaf), everywhere)  # else it may share its memory
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda _: host)

    return jax.tree.map(copied, tree)


def share(count: int) -> range:
    """This process's share of `count` things; `count` is a multiple of the processes."""
    each = count // team().count
    return range(team().index * each, (team().index + 1) * each)


def first_devices(count: int) -> list[Device]:
    """The first `count` devices of every process of the team, in the order of the processes."""
    if team().count == 1:
        return list(team().devices[:count])
    return [
        device
        for process in range(jax.process_count())
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]


def free_bytes(device: Device) -> int | None:
    """Free memory of an accelerator; None if the device does not report it, as on a CPU."""
    found: dict[str, Any] | None = device.memory_stats()
    if not found or "bytes_limit" not in found:
        return None
    return found["bytes_limit"] - found.get("bytes_in_use", 0)
