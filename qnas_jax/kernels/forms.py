"""Which form of a kernel a program is written in: the CPU's, or one of the accelerators'.

The choice is made while a program is traced. It belongs to the key of JAX's caches: a jitted
function that was traced with another choice is traced again.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import jax.numpy as jnp

logger = logging.getLogger(__name__)

# Of a depthwise convolution. "cpu": a sum of shifted products whose gradients XLA's CPU compiler
# runs fast. "grouped": one convolution with a group for each channel. "shifted": a sum of shifted
# products with the gradients that JAX derives. Other kernels have two forms: "cpu" and the rest.
Form = Literal["cpu", "grouped", "shifted"]

REPEATS = 5  # of each measurement

_given: Any = jax.make_user_context(None)
_measured: dict[str, Form] = {}  # by platform, once in a process
_measuring = threading.RLock()  # threads of several devices trace at the same time


def given(form: Form) -> AbstractContextManager:
    """Within, programs are traced in this form, whatever device is at hand."""
    return _given(form)


def on_cpu() -> bool:
    """Whether programs are traced in the form of CPUs."""
    return (_given.value or jax.default_backend()) == "cpu"


def for_depthwise(
    run: Callable[..., Any], shapes: Sequence[tuple[int, ...]], candidates: tuple[Form, ...]
) -> Form:
    """The form of depthwise convolutions: the given one, the CPU's, or the fastest candidate.

    An accelerator is measured once in a process, also while a program is traced. Each of several
    processes might find another form, but all must trace the same programs: they take the first
    candidate unmeasured.

    Args:
      run: A jitted function, a typical computation in the form that is given.
      shapes: Of its arguments, which are float32.
      candidates: The forms of accelerators.
    """
    if _given.value:
        return _given.value
    platform = jax.default_backend()
    if platform == "cpu":
        return "cpu"
    with _measuring:
        if platform not in _measured:
            _measured[platform] = _fastest(run, shapes, candidates)
        return _measured[platform]


def _fastest(run, shapes, candidates) -> Form:
    """The fastest candidate, which is logged with all times."""
    if jax.process_count() > 1:
        logger.info("depthwise convolutions: %s, unmeasured in several processes", candidates[0])
        return candidates[0]
    seconds = {}
    with jax.ensure_compile_time_eval():  # now, not as a part of the program that is traced
        arguments = [jnp.ones(shape) for shape in shapes]
        for form in candidates:
            with given(form):
                seconds[form] = shortest_seconds(run, *arguments)
    best = min(candidates, key=lambda form: seconds[form])
    times = ", ".join(f"{form} {1000 * seconds[form]:.3g} ms" for form in candidates)
    logger.info("depthwise convolutions: %s, the fastest here (%s)", best, times)
    return best


def shortest_seconds(run: Callable[..., Any], *arguments: Any) -> float:
    """The shortest time of a few runs, without the first, which compiles."""
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - begin)
    return min(times)
