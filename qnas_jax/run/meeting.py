"""How several processes find each other, and what a lost one does to the others."""

import ctypes
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import time
import warnings
from typing import Any

import jax
import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.run import cli, parallel
from qnas_jax.run.processes import AGAIN, LOST, gathered

logger = logging.getLogger(__name__)

WAIT_S, HEARTBEAT_S = 300, 30


def meet(coordinator: str | None, processes: int | None, process: int | None) -> bool:
    """Waits for the other processes, if there are any; returns whether there are.

    Without arguments, the processes of a Slurm step, of a Kubernetes job and of a TPU pod find each
    other.

    Args:
      coordinator: HOST:PORT of process 0; [::1]:PORT for IPv6.
      processes: The number of processes.
      process: The number of this one, from 0.

    Raises:
      InputError: The arguments cannot be used, or the coordinator does not answer.
    """
    given = [coordinator, processes, process]
    if all(value is None for value in given):
        if _detected() < 2:
            return False
    elif coordinator is None or processes is None or process is None:
        raise InputError("--coordinator, --processes, --process: give all three or none")
    else:
        host, port = address("--coordinator", coordinator)
        if process >= processes:
            raise InputError(f"--process={process}: must be below --processes={processes}")
        wait = f"waiting up to {WAIT_S // 60} minutes"
        logger.info("%s for all %d processes at %s", wait, processes, coordinator)
        if process:
            wait_for_port(host, port, WAIT_S)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away
    # JAX waits, and aborts after a while, where Python handles no signals.
    minutes, before = WAIT_S // 60, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    _leave_on(signal.SIGABRT, f"not all processes came within {minutes} minutes", cli.PROCESS_LOST)
    _leave_on(signal.SIGTERM, "stopped by SIGTERM while waiting for all processes", cli.TERMINATED)
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=WAIT_S, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--coordinator, --processes, --process: {error}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    lost = f"{LOST} (no heartbeat, or an abort; see above); {AGAIN}"
    _leave_on(signal.SIGABRT, lost, cli.PROCESS_LOST)
    parallel.check_devices()
    each = [int(n) for n in gathered("devices", np.array(len(jax.local_devices())))]
    if len(set(each)) > 1:
        raise InputError(f"devices by process: {each}; all must have as many")
    if not parallel.is_first():  # the first process reports
        logging.getLogger("qnas_jax").setLevel(logging.WARNING)
    return True


def _detected() -> int:
    """The number of processes that this one was started with, as the environment says."""
    marks = "SLURM_STEP_NODELIST", "KUBERNETES_SERVICE_HOST", "OMPI_COMM_WORLD_SIZE"
    if not any(name in os.environ for name in marks) and not importlib.util.find_spec("libtpu"):
        return 1
    from jax._src import clusters  # nothing public says it without initializing

    for kind in clusters.ClusterEnv._cluster_types:
        try:
            with warnings.catch_warnings(action="ignore"):  # of a missing `kubernetes`
                is_here = not kind.opt_in_only_method and kind.is_env_present()
            if is_here:
                return kind.get_process_count()
        except Exception as error:  # e.g. a pod that may not ask for its job
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.info("one process: %s did not say how many there are (%s)", kind.name, reason)
            return 1
    return 1


def _leave_on(number: int, why: str, code: int) -> None:
    """Lets this process end with one line and an exit code at a signal, also within JAX."""

    def leave(_: int) -> None:
        os.write(2, f"error: {why}\n".encode())
        os._exit(code)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(leave))
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(number, _kept[-1])


_kept: list[Any] = []  # what C calls must not be collected


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
