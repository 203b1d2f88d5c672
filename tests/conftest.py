"""Strict settings of JAX, and fixtures of several rooms."""

import os

import jax
import pytest

from small_network import int8, mixed

__all__ = ["int8", "mixed"]

# Shapes of different ranks hide mistakes, e.g. [c] where [n, c] was meant: the code says where
# axes are added. (Not by an environment variable: programs refuse it.)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """Compiles each program once for all processes of this session, not once in each."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def no_leaks():
    """Fails where a traced value outlives its trace; traces anew, so for small programs only."""
    with jax.checking_leaks():
        yield
