"""Two processes, started for each test, that wait for each other and end together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from qnas_jax.run import processes

BEGIN = """
import os, pathlib, signal, sys, time
import numpy as np
from qnas_jax.errors import Diverged, InputError
from qnas_jax.run import cli, meeting, parallel, preempt, processes
meeting.HEARTBEAT_S, processes.LEAVE_S = 10, 3
folder, index = pathlib.Path(sys.argv[3]), int(sys.argv[1])

def main():
    meeting.meet(sys.argv[2], 2, index)
    with processes.ending_together():
        work()
        processes.wait_for_all("done")
"""
END = "\ncli.guarded(main)\n"


def _start(work: str, folder: pathlib.Path, count: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + work + END, str(i), address, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def _ends(running: list[subprocess.Popen]) -> list[tuple[int, str]]:
    said = [process.communicate(timeout=300)[0] for process in running]
    codes = [process.returncode for process in running]
    return [(c, text.splitlines()[-1] if text else "") for c, text in zip(codes, said, strict=True)]


TOGETHER = """
def work():
    with processes.first_goes_first("write"):
        assert parallel.team().count == 1
        assert parallel.is_first() == (index == 0)
        if index == 0:
            time.sleep(0.5)
            (folder / "first").touch()
        assert (folder / "first").exists()
        with processes.first_goes_first("nested"):
            processes.wait_for_all("alone, so nobody waits")
    assert processes.by_first("one", lambda: "result") == ("result" if index == 0 else None)
    processes.check_same("number", 7)
    parallel.spread(range(6), lambda unit, device: (folder / f"{unit}-of-{index}").touch())
    processes.wait_for_all("spread")
    assert len(list(folder.iterdir())) == 7
    found = processes.gathered("arrays", np.arange(3 * index, dtype=np.int64) + 2**40)
    assert [part.tolist() for part in found] == [[], [2**40, 2**40 + 1, 2**40 + 2]]
    stops = processes.Stops("rounds", lambda: index == 1)
    rounds = []
    for round_ in range(9):
        if stops.before(round_):
            break
        rounds.append(round_)
        processes.wait_for_all("round")
    assert rounds == [0, 1] and stops.at_the_end()
    processes.check_same("units", index)
"""


def test_two_processes_agree_and_end_with_the_same_line(tmp_path):
    found = _ends(_start(TOGETHER, tmp_path))
    assert [code for code, _ in found] == [2, 2]
    assert found[0][1] == found[1][1]
    assert found[0][1].startswith("error: units [0, 1] by process: the folder does not look")


BUSY = """
def work():
    if index == 1:
        raise InputError("is broken")
    time.sleep(300)
"""


def test_an_error_reaches_a_process_that_waits_for_nobody(tmp_path):
    assert _ends(_start(BUSY, tmp_path)) == [(2, "error: is broken")] * 2


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(("kind", "code"), [("InputError", 2), ("Diverged", 3)])
def test_an_error_of_one_ends_both(tmp_path, failing, kind, code):
    work = f"""
def work():
    def fail():
        raise {kind}("is broken")
    if {failing} == 0:
        processes.by_first("work", fail)
    elif index == 1:
        fail()
"""
    assert _ends(_start(work, tmp_path)) == [(code, "error: is broken")] * 2


WAITING = """
def work():
    (folder / f"ready{index}").touch()
    processes.by_first("work", lambda: time.sleep(300))
"""


def _ready(running, folder):
    while not all((folder / f"ready{i}").exists() for i in range(2)):
        assert all(process.poll() is None for process in running), _ends(running)
        time.sleep(0.1)


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_a_stop_of_any_ends_both(tmp_path, asked):
    running = _start(WAITING, tmp_path)
    _ready(running, tmp_path)
    for index in asked:
        running[index].send_signal(signal.SIGTERM)
    message = "error: stopped by SIGTERM; the same command resumes it"
    assert _ends(running) == [(143, message)] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_line(tmp_path, lost):
    running = _start(WAITING, tmp_path)
    _ready(running, tmp_path)
    running[lost].kill()
    code, line = _ends(running)[1 - lost]
    assert code == 4
    assert line.startswith("error: a process is gone or failed (")
    assert line.endswith("; start all again")


def test_one_process_waits_for_nobody():
    processes.wait_for_all("name")
    processes.check_same("units done", 3)
    with processes.first_goes_first("name"):
        assert processes.by_first("name", lambda: 3) == 3
    asked = []
    stops = processes.Stops("name", lambda: bool(asked))
    assert not stops.before(0) and not stops.at_the_end()
    asked.append(1)
    assert stops.before(1) and stops.at_the_end()


SLOW_COMPILER = """
def work():
    import jax
    devices = parallel.first_devices(1)
    processes.connect(devices)
    if index == 1:
        time.sleep(40)  # as if its program took so long to compile
    total = jax.pmap(lambda x: jax.lax.psum(x, "d"), "d", devices=devices)(np.ones((1, 3)))
    assert total.addressable_data(0).tolist() == [[2.0, 2.0, 2.0]]
"""


@pytest.mark.slow
def test_a_process_waits_for_one_that_still_compiles(tmp_path):
    assert [code for code, _ in _ends(_start(SLOW_COMPILER, tmp_path))] == [0, 0]  # Gloo talks


ALONE = """
def main():
    meeting.meet(sys.argv[2], 2, 0)
"""


def test_sigterm_ends_a_process_that_waits_for_the_others(tmp_path):
    (running,) = _start(ALONE, tmp_path, count=1)
    _wait_until_it_listens(running)
    running.send_signal(signal.SIGTERM)
    (ended,) = _ends([running])
    assert ended == (143, "error: stopped by SIGTERM while waiting for all processes")


def _wait_until_it_listens(running):
    host, port = running.args[4].split(":")
    while running.poll() is None:
        try:
            return socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
