"""Measures latencies on a machine that may be busy.

Interference only makes runs longer, and it comes in phases. The latency is therefore the mean of
the fastest tenth of all runs, taken from separate bursts. It is slightly below the plain mean on a
quiet machine and almost the same on a busy one. Each burst loads the model anew, because the
placement of weights in memory can matter. The bursts of several models are interleaved in random
order, so that drift affects all of them equally.
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

FASTEST = 0.1  # fraction of the runs that is averaged
DIGITS = 6  # decimals of milliseconds; clocks resolve nanoseconds
Bursts = Sequence[np.ndarray]  # seconds of each run, one array per burst
Name = TypeVar("Name", bound=Hashable)


class Effort(NamedTuple):
    """When to stop measuring.

    Attributes:
      width: Target length of the 95 % confidence interval, relative to the latency.
      limit_s: Seconds of runs of one model after which measuring stops in any case.
      bursts: Minimum number of bursts.
      burst_s: Seconds per burst.
      runs: Minimum number of runs per burst.
      warm_up: Untimed runs before each burst.
    """

    width: float = 0.01
    limit_s: float = 4.0
    bursts: int = 8
    burst_s: float = 0.02
    runs: int = 5
    warm_up: int = 3


class Timing(NamedTuple):
    """A measured latency and the distribution of all runs."""

    latency_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    count: int
    interval_ms: float  # length of the 95 % confidence interval of the latency


def timed(
    loads: Mapping[Name, Callable[[], Run]],
    effort: Effort,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[Name, Bursts]]:
    """Times several models in turns and yields each as soon as it is measured well enough.

    Args:
      loads: Functions that load a model and return its run function, by name.
      effort: When to stop.
      seed: Seed of the order of the turns.
      clock: Returns the time in seconds.

    Yields:
      The name, and the seconds of all runs, one array per burst.
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
    """Returns the mean of the fastest tenth of all runs (at least one run), in seconds."""
    runs = np.sort(np.concatenate(bursts))
    return float(runs[: math.ceil(FASTEST * len(runs))].mean())


def interval(bursts: Bursts) -> float:
    """Returns the length of the latency's 95 % confidence interval in seconds, by jackknife.

    References:
      Efron and Stein, 1981, https://doi.org/10.1214/aos/1176345462, eq. 1.3.
    """
    count = len(bursts)
    without = [latency([*bursts[:i], *bursts[i + 1 :]]) for i in range(count)]
    error = math.sqrt((count - 1) * float(np.var(without)))
    return 2 * _t95(count - 1) * error


def _t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; the error is 2 % at 4 degrees of freedom, then smaller.

    References:
      Abramowitz and Stegun, 1964, eq. 26.7.5.
    """
    z = 1.959964
    third, fifth = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + third / freedom + fifth / freedom**2


def summary(bursts: Bursts, overhead_s: float = 0.0) -> Timing:
    """Returns the statistics of one model.

    Args:
      bursts: Seconds of all runs, one array per burst.
      overhead_s: Seconds to subtract from the latency and the percentiles.
    """
    runs = np.concatenate(bursts)
    std_ms, interval_ms = (round(1e3 * value, DIGITS) for value in (runs.std(), interval(bursts)))
    seconds = np.array([latency(bursts), *np.percentile(runs, (50, 90, 99))]) - overhead_s
    # Latencies must stay positive.
    mean, p50, p90, p99 = np.maximum(1e3 * seconds, 0.1**DIGITS).round(DIGITS).tolist()
    return Timing(mean, float(std_ms), p50, p90, p99, len(runs), float(interval_ms))


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Pins this process and the threads that it starts to `threads` CPUs, if the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    # The system's own work tends to run on the first CPUs.
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
