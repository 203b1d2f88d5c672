"""Which subnets an audit trains."""

import numpy as np
import pytest

import small_tables
from qnas_jax import space
from qnas_jax.bwnas import search_front
from qnas_jax.ranking import drawn

BITS = ((8, 8), (4, 4))
FIXED = 1000


@pytest.fixture(scope="module")
def rows():
    return small_tables.drawn(BITS)


@pytest.fixture(scope="module")
def points(rows):
    return search_front.search(rows, {"size_bytes": {"head": FIXED}})


def size_of(rows, subnet):
    found = FIXED
    for block, choices in enumerate(subnet):
        (row,) = [r for r in rows.rows_of(block) if rows.choices(r) == choices]
        found += int(rows.costs["size_bytes"][row])
    return found


def test_kinds_and_counts(rows, points):
    found = drawn.draw(rows, points, FIXED, 24, 0.2, seed=0)
    assert len(found) == 24
    assert len({one.subnet for one in found}) == 24
    kinds = [one.kind for one in found]
    assert kinds.count("largest") == kinds.count("smallest") == 1
    assert kinds.count("equal size") <= 6
    sizes = [size_of(rows, one.subnet) for one in found]
    assert sizes[kinds.index("largest")] == max(sizes)
    assert sizes[kinds.index("smallest")] == min(sizes)


def test_those_of_equal_size_are(rows, points):
    found = drawn.draw(rows, points, FIXED, 24, 0.1, seed=1)
    sizes = [size_of(rows, one.subnet) for one in found if one.kind == "equal size"]
    assert sizes
    assert max(sizes) - min(sizes) <= 0.1 * max(sizes)


def test_those_of_the_front_are_on_it(rows, points):
    texts = {point.subnet for point in points}
    found = drawn.draw(rows, points, FIXED, 24, 0.1, seed=0)
    assert all(space.format_subnet(one.subnet) in texts for one in found if one.kind == "front")


def test_random_ones_have_each_pair_of_bitwidths_and_mixtures(rows, points):
    found = drawn.draw(rows, points, FIXED, 40, 0.0, seed=0)
    bits = {drawn.bits_of(one.subnet) for one in found if one.kind == "random"}
    assert bits == {"w8a8", "w4a4", drawn.MIXED}


def test_a_draw_is_that_of_its_seed_and_does_not_read_the_nsr(rows, points):
    first, again = (drawn.draw(rows, points, FIXED, 20, 0.2, seed=3) for _ in range(2))
    assert first == again
    other = small_tables.drawn(BITS, seed=5)
    unscored = [one for one in drawn.draw(other, points, FIXED, 20, 0.2, seed=3)]
    assert unscored == first
    assert drawn.draw(rows, points, FIXED, 20, 0.2, seed=4) != first


def test_a_small_space_is_drawn_whole():
    rows = small_tables.drawn(((8, 8),))
    points = search_front.search(rows, {"size_bytes": {"head": FIXED}})
    found = drawn.draw(rows, points, FIXED, 100, 0.1, seed=0)
    assert 20 <= len(found) <= 27  # of 9 x 3 subnets
    assert np.all([drawn.bits_of(one.subnet) == "w8a8" for one in found])
