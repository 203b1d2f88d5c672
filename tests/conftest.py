"""Strict settings of JAX, and fixtures of several rooms."""

import jax
import pytest

from small_network import int8, mixed

__all__ = ["int8", "mixed"]

# Shapes of different ranks hide mistakes, e.g. [c] where [n, c] was meant: the code says where
# axes are added. (Not by an environment variable: programs refuse it.)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def no_leaks():
    """Fails where a traced value outlives its trace; traces anew, so for small programs only."""
    with jax.checking_leaks():
        yield
