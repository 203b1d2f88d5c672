"""Devices and processes; several of them are made up, or started."""

import contextlib
import functools
import signal
import threading
import time
import types

import jax
import pytest

from qnas_jax.errors import InputError
from qnas_jax.run import parallel, preempt

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


def _made_up(monkeypatch, platform):
    device = types.SimpleNamespace(platform=platform)
    monkeypatch.setattr(parallel, "team", lambda: parallel.Team(1, 0, (device,), True))


def test_works_that_do_not_depend_on_each_other_run_two_at_a_time_on_a_cpu(monkeypatch):
    _made_up(monkeypatch, "cpu")
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 8)
    pairs = threading.Barrier(2, timeout=60)

    def work(number):
        pairs.wait()
        return number

    works = [functools.partial(work, number) for number in range(6)]
    assert parallel.side_by_side(works) == list(range(6))
    assert parallel.side_by_side([]) == []


@pytest.mark.parametrize(("platform", "cores"), [("gpu", 8), ("cpu", 1)])
def test_an_accelerator_and_a_single_core_do_one_work_after_the_other(monkeypatch, platform, cores):
    _made_up(monkeypatch, platform)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: cores)
    assert set(parallel.side_by_side([threading.current_thread] * 3)) == {threading.main_thread()}


def test_an_error_beside_other_work_is_raised_and_ends_it(monkeypatch):
    _made_up(monkeypatch, "cpu")
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    both, begun = threading.Barrier(2, timeout=60), []

    def fails():
        both.wait()
        raise InputError("broken")

    def long():
        both.wait()
        while not parallel.is_given_up():
            time.sleep(0.01)

    with pytest.raises(InputError, match=r"^broken$"):
        parallel.side_by_side([fails, long, functools.partial(begun.append, 1)])
    assert not begun


def test_a_second_sigterm_does_not_cut_off_what_is_being_saved(monkeypatch):
    _made_up(monkeypatch, "cpu")
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    both, saved = threading.Barrier(2, timeout=60), threading.Event()

    def stop():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def stops():
        both.wait()
        time.sleep(0.2)  # until the main thread has started both, and waits
        stop()

    def saves():
        both.wait()
        while not parallel.is_given_up():
            time.sleep(0.01)
        time.sleep(0.2)
        stop()
        time.sleep(0.2)
        saved.set()

    with pytest.raises(preempt.Stopped), preempt.raising():
        parallel.side_by_side([stops, saves])
    assert saved.is_set()


def test_work_beside_other_work_has_the_same_team():
    with parallel.alone(writes=False):
        assert parallel.side_by_side([parallel.is_first] * 3) == [False] * 3


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


def test_a_default_device_that_is_not_here_is_refused(monkeypatch):
    def unknown(_):
        raise RuntimeError("Unknown backend: 'gpu' requested")

    monkeypatch.setenv("JAX_DEFAULT_DEVICE", "gpu")
    monkeypatch.setattr(jax, "device_put", unknown)
    with pytest.raises(InputError, match=r"^.*JAX_DEFAULT_DEVICE=gpu: no such device here"):
        parallel.check_devices()
