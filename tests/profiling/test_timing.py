"""Tests the statistics of timing with a simulated clock."""

import itertools
import os

import numpy as np
import pytest

from qnas_jax.profiling import timing
from qnas_jax.profiling.timing import Effort


class Machine:
    """A simulated clock, and runs with given durations."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def clock(self):
        return self.now

    def load(self, name, seconds):
        """Returns a load function; `seconds` iterates over the durations of the runs."""

        def run():
            self.log.append(name)
            self.now += next(seconds)

        def loaded():
            self.log.append(f"load {name}")
            return run

        return loaded


def test_the_latency_is_the_mean_of_the_fastest_tenth():
    runs = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert timing.latency(np.split(runs, 5)) == np.mean(np.arange(1, 11))
    assert timing.latency([np.array([3.0, 2.0, 5.0])]) == 2.0


def test_interference_with_less_than_nine_tenths_of_the_runs_has_no_effect():
    quiet = [np.full(100, 2.0)] * 10
    busy = [burst.copy() for burst in quiet]
    for burst in busy[:8]:
        burst += np.random.default_rng(0).uniform(0, 5, 100)
    assert timing.latency(busy) == timing.latency(quiet) == 2.0


def test_the_interval_equals_the_textbook_interval_of_a_mean():
    """Bursts of one run are plain samples."""
    rng = np.random.default_rng(0)
    bursts = [np.array([value]) for value in rng.normal(10, 1, 12)]
    everything = np.concatenate(bursts)
    textbook = 2 * 2.200985 * everything.std(ddof=1) / np.sqrt(12)  # t of 11 degrees, 97.5 %
    fastest, timing.FASTEST = timing.FASTEST, 1.0
    try:
        assert timing.interval(bursts) == pytest.approx(textbook, rel=1e-3)
    finally:
        timing.FASTEST = fastest


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.7764), (7, 2.3646), (30, 2.0423)])
def test_quantiles_of_students_t(freedom, quantile):
    assert timing._t95(freedom) == pytest.approx(quantile, rel=0.02)


def test_constant_runs_need_the_minimum_number_of_bursts():
    machine = Machine()
    loads = {"a": machine.load("a", itertools.repeat(0.002))}
    effort = Effort(bursts=3, burst_s=0.01, runs=2, warm_up=4)
    ((name, bursts),) = timing.timed(loads, effort, clock=machine.clock)
    assert name == "a"
    assert [len(burst) for burst in bursts] == [5, 5, 5]  # runs of 2 ms in 10 ms
    assert machine.log == (["load a"] + ["a"] * 9) * 3  # each burst loads and warms up


def test_long_runs_are_repeated_the_minimum_number_of_times():
    machine = Machine()
    loads = {"a": machine.load("a", itertools.repeat(1.0))}
    effort = Effort(bursts=2, burst_s=0.01, runs=3, warm_up=0)
    ((_, bursts),) = timing.timed(loads, effort, clock=machine.clock)
    assert [len(burst) for burst in bursts] == [3, 3]


def test_noisy_runs_are_measured_until_the_interval_is_narrow_or_the_time_is_up():
    rng = np.random.default_rng(0)
    effort = Effort(width=0.05, bursts=3, burst_s=0.0, runs=5, warm_up=0, limit_s=1e9)
    machine = Machine()
    loads = {"a": machine.load("a", iter(lambda: rng.uniform(1, 3), None))}
    ((_, bursts),) = timing.timed(loads, effort, clock=machine.clock)
    assert len(bursts) > 3
    assert timing.interval(bursts) <= 0.05 * timing.latency(bursts)
    assert timing.interval(bursts[:-1]) > 0.05 * timing.latency(bursts[:-1])
    ((_, cut),) = timing.timed(
        loads, effort._replace(width=0.0, limit_s=100.0), clock=machine.clock
    )
    assert sum(burst.sum() for burst in cut[:-1]) < 100 <= sum(burst.sum() for burst in cut)


def test_models_take_turns_and_are_yielded_when_done():
    machine = Machine()
    wobble = itertools.cycle([0.001, 0.002, 0.003])
    loads = {
        "steady": machine.load("steady", itertools.repeat(0.001)),
        "wobbly": machine.load("wobbly", wobble),
    }
    effort = Effort(width=0.0, bursts=4, burst_s=0.0, runs=1, warm_up=0, limit_s=0.02)
    names = [name for name, _ in timing.timed(loads, effort, clock=machine.clock)]
    assert names == ["steady", "wobbly"]
    loaded = [line.removeprefix("load ") for line in machine.log if line.startswith("load ")]
    rounds = [set(loaded[i : i + 2]) for i in range(0, 8, 2)]
    assert rounds == [{"steady", "wobbly"}] * 4


def test_a_summary_subtracts_the_overhead_except_from_the_deviation():
    bursts = [np.arange(1.0, 51.0), np.arange(51.0, 101.0)]  # seconds
    found = timing.summary(bursts, overhead_s=0.5)
    runs = np.arange(1.0, 101.0)
    assert found.latency_ms == 1e3 * (5.5 - 0.5)
    assert found.p50_ms == 1e3 * (np.percentile(runs, 50) - 0.5)
    assert found.p90_ms == pytest.approx(1e3 * (np.percentile(runs, 90) - 0.5))
    assert found.p99_ms == pytest.approx(1e3 * (np.percentile(runs, 99) - 0.5))
    assert found.std_ms == pytest.approx(1e3 * runs.std())
    assert found.count == 100


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin processes")
def test_pinning_ends_with_the_work():
    before = os.sched_getaffinity(0)
    with timing.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
