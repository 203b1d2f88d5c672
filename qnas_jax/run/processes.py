"""Several processes: how they wait for each other, and end together.

They exchange short texts through the key-value store of JAX's coordination service, which needs no
device and can be asked in between. So a process that waits still handles SIGTERM, and it learns at
once if another one ends.
"""

import collections
import contextlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qnas_jax.errors import Diverged, InputError, ProcessLost
from qnas_jax.run import cli, parallel, preempt

WATCH_S = 1  # between two looks whether another process has ended
LEAVE_S = 20  # for the main thread to find out by itself; JAX's heartbeat aborts after 30
GRACE_S = 5  # that the others have to learn why the first one ends
READ_S = 300  # after which a text that must be there is given up
POLL_S = 0.02, 0.5  # between two questions, at first and later
LOST = "a process is gone or failed"
AGAIN = "start all again"

# How errors begin that say nothing of other processes.
OWN_FAULTS = "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND"

_LEFT = "left"  # the key under which a process says why it ends
_KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind for kind in (InputError, Diverged, ProcessLost, preempt.Stopped)
}
_uses: collections.Counter[str] = collections.Counter()

Result = TypeVar("Result")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Within, an error of one process ends all of them, with the same message.

    SIGTERM to one of them reaches all.

    Raises:
      ProcessLost: A process ended without a word.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        yield
    except (InputError, Diverged, preempt.Stopped) as error:
        over.set()
        _say_goodbye(error)
        raise
    except jax.errors.JaxRuntimeError as error:  # a collective that lost a process, or an own fault
        reason = str(error).splitlines()[0][:200]
        over.set()
        if jax.process_count() == 1:
            raise
        if reason.startswith(OWN_FAULTS):
            _say_goodbye(ProcessLost(f"{LOST} ({reason}); {AGAIN}"))
            raise
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the store may be gone, too
            _check_all_there()
        raise ProcessLost(f"{LOST} ({reason}); {AGAIN}") from None
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    """Ends this process once another has ended: its main thread may work alone for hours."""
    while not over.wait(WATCH_S):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the heartbeat will find it
            found = _look_up(_LEFT)
            if found is None:
                continue
            kind, message = json.loads(found)
            if (
                _KINDS.get(kind) is preempt.Stopped
            ):  # in the main thread; a training saves its state
                os.kill(os.getpid(), signal.SIGTERM)
            if not over.wait(LEAVE_S):
                cli.leave(message, cli.code_of(_KINDS.get(kind, InputError)))
            return


def _say_goodbye(error: BaseException) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first, or is gone
        _client().key_value_set(_LEFT, json.dumps([type(error).__name__, str(error)]))
    if jax.process_index() == 0:  # it holds the store, where the others still have to look
        time.sleep(GRACE_S)


def _check_all_there() -> None:
    """Raises the error that another process ended with."""
    found = _look_up(_LEFT)
    if found:
        kind, message = json.loads(found)
        raise _KINDS.get(kind, InputError)(message)


def wait_for_all(name: str) -> None:
    """Waits until every process of the team has called this with the same name.

    Raises:
      BaseException: The error with which another process ended.
    """
    if parallel.team().count > 1:
        key = _fresh("all", name)
        _client().key_value_increment(key, 1)
        _poll(lambda: int(_look_up(key) or 0) >= parallel.team().count)


def connect(devices: Sequence[parallel.Device]) -> None:
    """Connects devices of all processes, before they add up anything together.

    CPUs connect at their first sum, and wait no more than 30 s for each other then. A process that
    finds its program compiled would not wait for one that compiles it.
    """
    if parallel.team().count == 1:
        return
    wait_for_all("connect")
    mesh = Mesh(np.array(devices), ("devices",))
    divided, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["devices"], []))
    ones = jax.make_array_from_callback((len(devices),), divided, lambda _: np.ones(1, np.float32))
    jax.jit(jnp.sum, out_shardings=everywhere)(ones).block_until_ready()


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the body, alone; then all others do, each alone and without writing.

    So the others should find finished what the first one has done. If it fails, they raise its
    error instead.
    """
    if parallel.team().count == 1:
        yield
        return
    key = _fresh("first", name)
    if parallel.is_first():
        with parallel.alone():
            yield
        _client().key_value_set(key, "done")
        return
    _poll(lambda: bool(_look_up(key)))
    with parallel.alone(writes=False):
        yield


def by_first(name: str, work: Callable[[], Result]) -> Result | None:
    """Returns what `work` does in the first process; the others wait, and return None."""
    with first_goes_first(name):
        return work() if parallel.is_first() else None


def gathered(name: str, array: np.ndarray) -> list[np.ndarray]:
    """Returns the arrays of all processes of the team, in their order; for a few kilobytes."""
    if parallel.team().count == 1:
        return [array]
    key = _fresh("gathered", name)
    _client().key_value_set_bytes(f"{key}/{parallel.team().index}", _bytes_of(array))
    wait_for_all(name)
    found = (
        _client().blocking_key_value_get_bytes(f"{key}/{index}", 1000 * READ_S)
        for index in range(parallel.team().count)
    )
    return [np.load(io.BytesIO(part)) for part in found]


def _bytes_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def check_same(what: str, number: int) -> None:
    """Checks that all processes found the same number.

    Raises:
      InputError: They found different ones.
    """
    found = [int(part) for part in gathered(what, np.array(number))]
    if len(set(found)) > 1:
        raise InputError(
            f"{what} {found} by process: the folder does not look the same to all of them "
            "(a file system that shows changes late?); start them again"
        )


class Stops:
    """Lets several processes stop before the same round of their work, once one is asked to.

    They must be in step: none begins a round before all have begun the round before the last.
    """

    def __init__(self, name: str, asked: Callable[[], bool]):
        """Args are the name of the work, and whether this process is asked to stop."""
        self._asked, self._name = asked, name
        self._key = _fresh("stop", name) if parallel.team().count > 1 else ""

    def before(self, round_: int) -> bool:
        """Whether all stop before this round."""
        if not self._key:
            return self._asked()
        if self._asked():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was asked before
                _client().key_value_set(self._key, str(round_ + 2))
        last = _look_up(self._key)
        return last is not None and round_ >= int(last)

    def at_the_end(self) -> bool:
        """Whether one of them is asked to stop after the last round."""
        asked = self._asked()
        return asked if not self._key else any(gathered(self._name, np.array(asked)))


def _fresh(kind: str, name: str) -> str:
    """A key that was not used before, the same in all processes."""
    key = f"{kind}/{name}"
    _uses[key] += 1
    return f"{key}/{_uses[key]}"


def _poll(is_there: Callable[[], bool]) -> None:
    """Asks again and again; raises the error with which another process ended."""
    wait, most = POLL_S
    while not is_there():
        _check_all_there()
        time.sleep(wait)
        wait = min(1.2 * wait, most)


def _client() -> Any:
    """The client of the key-value store, for which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _look_up(key: str) -> str | None:
    """The value of a key; None if it has none."""
    try:
        return _client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
