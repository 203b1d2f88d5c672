"""The measured peaks of a machine, and the memory that was used."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of some calls; the first, which compiles, is left out."""
    once(function)
    return min(once(function) for _ in range(repeats))


def once(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def matmul_flops(size: int = 2048) -> float:
    """Peak FLOP/s: a square matrix product, float32 on a CPU, else bfloat16."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / seconds(lambda: product(a), 7)


def stream_bytes(megabytes: int = 256) -> float:
    """Bytes/s that are read and written by adding one to a large array."""
    x = jnp.zeros(megabytes * 2**18, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds(lambda: add(x), 5)


def peak_memory_mb() -> float:
    """Most memory that this process has held, MB; on an accelerator, of its memory."""
    found = jax.local_devices()[0].memory_stats()
    if found and "peak_bytes_in_use" in found:
        return found["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
