"""Devices and processes; several of them are made up, or started."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.run import parallel

DEVICES = ("a", "b", "c")


def processes(monkeypatch, count, index=0):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: index)


@pytest.fixture
def devices(monkeypatch):
    """Makes up that many devices of this process."""

    def make(count):
        monkeypatch.setattr(jax, "local_devices", lambda: DEVICES[:count])
        monkeypatch.setattr(jax, "default_device", contextlib.nullcontext)

    return make


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_unit_is_done_once_on_some_device(devices, count):
    devices(count)
    done, lock = [], threading.Lock()

    def work(unit, device):
        with lock:
            done.append((unit, device))

    parallel.spread(range(20), work)
    assert sorted(unit for unit, _ in done) == list(range(20))
    assert {device for _, device in done} <= set(DEVICES[:count])


def test_all_devices_work_at_once(devices):
    devices(3)
    together = threading.Barrier(3, timeout=60)
    parallel.spread(range(3), lambda *_: together.wait())
    assert not together.broken


def test_several_processes_share_the_units(devices, monkeypatch):
    devices(1)
    done = []
    for index in range(3):
        processes(monkeypatch, 3, index)
        mine = []
        parallel.spread([5, 1, 4, 0, 3, 2, 6], lambda unit, _, mine=mine: mine.append(unit))
        done.append(mine)
    assert done == [[0, 5, 6], [1, 3], [2, 4]], "every third unit, each share in order"


@pytest.mark.parametrize("failing", DEVICES)
def test_an_error_on_any_device_is_raised_and_no_further_unit_is_begun(devices, failing):
    """Also if it is not the device that is waited for first."""
    devices(3)
    begun, failed, all_at_work = [], threading.Event(), threading.Barrier(3, timeout=60)

    def work(unit, device):
        begun.append(unit)
        if len(begun) <= 3:
            all_at_work.wait()
        if device == failing:
            failed.set()
            raise InputError(f"{device} is broken")
        assert failed.wait(60)
        time.sleep(0.05)

    with pytest.raises(InputError, match=f"^{failing} is broken$"):
        parallel.spread(range(100), work)
    # Each of the two others may have taken one more unit before the rest was dropped.
    assert len(begun) <= 5


def test_an_error_on_the_only_device_is_raised(devices):
    devices(1)
    begun = []

    def work(unit, device):
        begun.append(unit)
        raise InputError("broken")

    with pytest.raises(InputError, match=r"^broken$"):
        parallel.spread(range(9), work)
    assert begun == [0]


def test_units_that_come_later_are_not_lost_by_an_earlier_error(devices):
    """Nothing is kept from one call to the next."""
    devices(2)

    def broken(unit, device):
        raise RuntimeError(unit)

    with pytest.raises(RuntimeError):
        parallel.spread([1, 2, 3], broken)
    done = []
    parallel.spread([1, 2, 3], lambda unit, _: done.append(unit))
    assert sorted(done) == [1, 2, 3]


def test_one_process_has_all_of_a_batch():
    assert parallel.share(8) == range(8)


def test_processes_share_a_batch_in_their_order(monkeypatch):
    shares = []
    for index in range(4):
        processes(monkeypatch, 4, index)
        shares.extend(parallel.share(8))
    assert shares == list(range(8))


@pytest.mark.parametrize("found", [[3, 3, 3], [3, 3, 2]])
def test_processes_that_found_different_things_are_refused(monkeypatch, found):
    from jax.experimental import multihost_utils

    processes(monkeypatch, 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: np.array([found]).T)
    if len(set(found)) == 1:
        parallel.check_same("units done", 3)
        return
    with pytest.raises(InputError, match=r"^units done \[3, 3, 2\] by process: ") as error:
        parallel.check_same("units done", 3)
    assert "\n" not in str(error.value)


def test_one_process_agrees_with_itself_without_asking():
    parallel.check_same("units done", 3)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("index", "expected"), [(0, ["body", "wait for name"]), (1, ["wait for name", "body"])]
)
def test_the_first_process_goes_first_even_if_it_fails(monkeypatch, index, expected, fails):
    processes(monkeypatch, 2, index)
    order = []
    monkeypatch.setattr(parallel, "wait_for_all", lambda name: order.append(f"wait for {name}"))

    def run():
        with parallel.first_goes_first("name"):
            order.append("body")
            if fails:
                raise InputError("broken")

    if fails:
        with pytest.raises(InputError, match="broken"):
            run()
    else:
        run()
    assert order == expected


PROCESS = """
import pathlib, sys, jax
from qnas_jax.errors import InputError
from qnas_jax.run import parallel
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
folder, index = pathlib.Path(sys.argv[3]), jax.process_index()
with parallel.first_goes_first("write"):
    if index == 0:
        (folder / "first").touch()
    assert (folder / "first").exists()
parallel.check_same("number", 7)
parallel.spread(range(6), lambda unit, device: (folder / f"{unit}-of-{index}").touch())
parallel.wait_for_all("spread")
assert len(list(folder.iterdir())) == 7
try:
    parallel.check_same("number", index)
except InputError as error:
    print(error)
"""


def test_two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(i), address, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert all("number [0, 1] by process: " in text for text in said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:1234", ("host", 1234)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_an_address_is_taken_apart_as_sockets_want_it(text, expected):
    assert parallel.address("--coordinator", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":1", "host:", "host:0", "host:70000", "host:-1", "host:x", "host:\u00b2"),
        *("::1", "::1:1234", "[::1]", "[::1]:0", "[::1:1234", "::1]:1234", "[host]:1", "[]:1"),
        *("http://host:1", "a b:1"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match=r"--coordinator=.*: must be HOST:PORT.*\[::1\]:1234"):
        parallel.address("--coordinator", text)


def test_a_port_is_found_at_an_ipv6_address():
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        text = f"[::1]:{listener.getsockname()[1]}"
        parallel.wait_for_port(*parallel.address("--coordinator", text), 0)


def test_a_port_that_nobody_listens_at_and_a_host_that_is_none_are_said():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1, port {port}: no answer"):
            parallel.wait_for_port("127.0.0.1", port, 0)
    with pytest.raises(InputError, match="port 80: no answer"):
        parallel.wait_for_port("a..b", 80, 300)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AssertionError(), "JAX has no plugin for it"), (RuntimeError("no such\nx"), "no such")],
)
def test_devices_that_are_not_here_are_said_in_a_line(monkeypatch, error, reason):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    monkeypatch.setattr(parallel.jax, "devices", devices)
    with pytest.raises(InputError, match="JAX_PLATFORMS=cuda: no such device") as caught:
        parallel.check_devices()
    assert f"({reason})" in str(caught.value) and "\n" not in str(caught.value)
