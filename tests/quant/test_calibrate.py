import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import calibrate


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 5, 4)])
def test_min_max_is_the_smallest_and_the_largest_value(shape):
    x = np.random.default_rng(0).normal(3.0, 1.0, shape).astype(np.float32)
    found = calibrate.min_max(jnp.asarray(x))
    np.testing.assert_array_equal(found, np.array([x.min(), x.max()]))


def test_the_hull_of_batches_is_the_range_of_all_data_in_any_order():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4)), jnp.float32)
    ranges = [calibrate.min_max(batch) for batch in x]
    for order in itertools.permutations(ranges):
        found = functools.reduce(calibrate.hull, order)
        np.testing.assert_array_equal(found, calibrate.min_max(x))


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ((-1.0, 2.0), (-3.0, 1.0), (-3.0, 2.0)),  # overlapping
        ((0.0, 1.0), (4.0, 5.0), (0.0, 5.0)),  # apart
        ((-9.0, 9.0), (-1.0, 1.0), (-9.0, 9.0)),  # one in the other
        ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)),  # a constant
    ],
)
def test_the_hull_is_the_smallest_range_that_holds_both(a, b, both):
    a, b = jnp.array(a), jnp.array(b)
    np.testing.assert_array_equal(calibrate.hull(a, b), both)
    np.testing.assert_array_equal(calibrate.hull(b, a), both)
