import pytest

from qnas_jax import parallel


@pytest.mark.parametrize(
    ("costs", "groups", "largest"),
    [
        ([3.0, 3.0, 2.0, 2.0, 2.0], 2, 6.0),  # the largest first, each to the least: 7
        ([9.0, 1.0, 1.0, 1.0], 2, 9.0),
        ([4.0, 1.0, 2.0, 3.0], 3, 4.0),
        ([5.0, 0.0, 0.0], 3, 5.0),
        ([1.0, 2.0], 1, 3.0),
    ],
)
def test_groups_take_every_unit_once_and_the_largest_is_the_least_possible(costs, groups, largest):
    found = parallel.balanced_groups(costs, groups)
    assert len(found) == groups and all(found)
    assert sorted(i for group in found for i in group) == list(range(len(costs)))
    assert max(sum(costs[i] for i in group) for group in found) == largest
