"""SIGTERM: how Slurm, Kubernetes and spot machines ask a program to end before they kill it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(BaseException):
    """SIGTERM came; the message says where.

    A BaseException, like KeyboardInterrupt, so that `except Exception` does not catch it.
    """


MESSAGE = "stopped by SIGTERM"
# SIGTERM came within `raising`. What it raised in a callback is printed and ignored by Python.
_came = threading.Event()


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within, SIGTERM raises `Stopped` in the main thread; if that got lost, again at the end."""

    def stop(*_: Any) -> None:
        _came.set()
        raise Stopped(MESSAGE)

    try:
        with _handled_by(stop):
            yield
        if _came.is_set():
            raise Stopped(MESSAGE)
    finally:
        _came.clear()


@contextlib.contextmanager
def noting() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is only noted; yields a function that returns whether it came.

    The signal may come more than once, e.g. to the process and again to its group. In other
    threads than the main one, the function says whether it came within `raising`.

    Raises:
      Stopped: At the end, if it came; at the beginning, if it came before and got lost.
    """
    if _came.is_set():
        raise Stopped(MESSAGE)
    if threading.current_thread() is not threading.main_thread():
        yield _came.is_set
        return
    came = threading.Event()
    with _handled_by(lambda *_: came.set()):
        yield came.is_set
    if came.is_set():
        raise Stopped(MESSAGE)


def ignored() -> contextlib.AbstractContextManager[None]:
    """Within, SIGTERM does nothing: the program is ending already."""
    return _handled_by(lambda *_: None)


@contextlib.contextmanager
def _handled_by(handler: Callable[..., None]) -> Iterator[None]:
    """Sets the handler in the main thread; does nothing in others, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler) or signal.SIG_DFL  # None: not Python's
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
