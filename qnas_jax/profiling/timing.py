"""How long something takes, on a machine that does other things too.

Whatever disturbs a run makes it longer, never shorter, and disturbances come in stretches. So
a latency is the mean of the fastest tenth of all runs, taken from bursts that lie apart: on a
quiet machine that is little below the plain mean, on a busy one it hardly moves.
Everything is loaded afresh for each burst, since where weights lie in memory can matter, and
the bursts of several things take turns in random order, so that what drifts is shared by all.
"""

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from qnas_jax.export.runtimes import Run

FASTEST = 0.1  # share of the runs that counts
DIGITS = 6  # of milliseconds: clocks tell nanoseconds
Bursts = Sequence[np.ndarray]  # seconds of the runs, burst by burst
Name = TypeVar("Name", bound=Hashable)


class Effort(NamedTuple):
    """When enough was measured.

    Attributes:
      width: Goal, of the 95 % confidence interval from end to end over the latency.
      limit_s: Seconds that one thing's runs may take, after which the goal is given up.
      bursts: Least number of bursts.
      burst_s: Seconds of a burst.
      runs: Least number of runs in a burst.
      warm_up: Runs ahead of each burst.
    """

    width: float = 0.01
    limit_s: float = 4.0
    bursts: int = 8
    burst_s: float = 0.02
    runs: int = 5
    warm_up: int = 3


class Timing(NamedTuple):
    """What was measured: the latency, and how all runs are distributed."""

    latency_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    count: int
    interval_ms: float  # length of the latency's 95 % confidence interval


def timed(
    loads: Mapping[Name, Callable[[], Run]],
    effort: Effort,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[Name, Bursts]]:
    """Times several things side by side, and gives each as soon as enough was measured.

    Args:
      loads: What makes each ready to run.
      effort: When that is.
      seed: Of the order in which they take turns.
      clock: Seconds.

    Yields:
      A name, and the seconds of all runs, burst by burst.
    """
    left: dict[Name, list[np.ndarray]] = {name: [] for name in loads}
    order = random.Random(seed)
    while left:
        for name in order.sample(list(left), len(left)):
            bursts = left[name]
            bursts.append(_burst(loads[name](), effort, clock))
            if _enough(bursts, effort):
                del left[name]
                yield name, bursts


def _burst(run: Run, effort: Effort, clock: Callable[[], float]) -> np.ndarray:
    for _ in range(effort.warm_up):
        run()
    seconds = []
    end = clock() + effort.burst_s
    while len(seconds) < effort.runs or clock() < end:
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return np.array(seconds)


def _enough(bursts: Bursts, effort: Effort) -> bool:
    if len(bursts) < effort.bursts:
        return False
    spent = sum(float(burst.sum()) for burst in bursts)
    return spent >= effort.limit_s or interval(bursts) <= effort.width * latency(bursts)


def latency(bursts: Bursts) -> float:
    """The mean of the fastest tenth of all runs (at least one), in their unit."""
    runs = np.sort(np.concatenate(bursts))
    return float(runs[: math.ceil(FASTEST * len(runs))].mean())


def interval(bursts: Bursts) -> float:
    """Length of the 95 % confidence interval of the latency, by leaving out each burst once.

    References:
      Efron and Stein, 1981, https://doi.org/10.1214/aos/1176345462, eq. 1.3 (the jackknife).
    """
    count = len(bursts)
    without = [latency([*bursts[:i], *bursts[i + 1 :]]) for i in range(count)]
    error = math.sqrt((count - 1) * float(np.var(without)))
    return 2 * _t95(count - 1) * error


def _t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; 2 % off at 4 degrees of freedom, less beyond.

    References:
      Abramowitz and Stegun, 1964, eq. 26.7.5.
    """
    z = 1.959964
    third, fifth = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + third / freedom + fifth / freedom**2


def summary(bursts: Bursts, overhead_s: float = 0.0) -> Timing:
    """The figures of one thing.

    Args:
      bursts: Seconds of all runs.
      overhead_s: What to take off of each.
    """
    runs = np.concatenate(bursts)
    std_ms, interval_ms = (round(1e3 * value, DIGITS) for value in (runs.std(), interval(bursts)))
    seconds = np.array([latency(bursts), *np.percentile(runs, (50, 90, 99))]) - overhead_s
    # A figure of next to nothing is still one.
    mean, p50, p90, p99 = np.maximum(1e3 * seconds, 0.1**DIGITS).round(DIGITS).tolist()
    return Timing(mean, float(std_ms), p50, p90, p99, len(runs), float(interval_ms))


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps this process, and threads that it starts, on as many CPUs; where systems allow it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    # Systems do their own work on the first CPUs.
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
