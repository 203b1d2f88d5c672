"""Which device trains which blocks on which parts of a batch."""

import itertools

import numpy as np
import pytest

from qnas_jax.bwnas import balance
from qnas_jax.bwnas.balance import Costs, Share

# Seconds of Table I's blocks, measured (docs/scaling.md); those of the teacher are a guess.
TABLE_ONE = Costs((0.37, 0.13, 0.35, 1.00, 1.52, 0.47), (0.05, 0.07, 0.10, 0.16, 0.22, 0.25))


def by_hand(costs, owners, device):
    """The time of a device: its units, and the teacher as far as each of its parts needs it."""
    total = 0.0
    for row in owners:
        mine = [block for block, owner in enumerate(row) if owner == device]
        total += sum(costs.blocks[block] for block in mine)
        total += costs.teacher[max(mine)] if mine else 0.0
    return total


@pytest.mark.parametrize("seed", range(5))
def test_times_are_those_of_all_units_and_of_the_teacher(seed):
    rng = np.random.default_rng(seed)
    costs = Costs(tuple(rng.uniform(1, 9, 4)), tuple(np.cumsum(rng.uniform(0, 1, 4))))
    owners = rng.integers(0, 3, (5, 4))
    expected = [by_hand(costs, owners, device) for device in range(3)]
    np.testing.assert_allclose(balance.seconds(costs, owners, 3), expected, rtol=1e-12)
    expected = max(expected) / np.mean(expected)
    assert balance.imbalance(costs, owners, 3) == pytest.approx(expected)


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_slowest_is_within_a_tenth_of_brute_force(seed, devices):
    rng = np.random.default_rng(seed)
    costs = Costs(tuple(rng.uniform(1, 9, 3)), tuple(np.cumsum(rng.uniform(0, 0.5, 3))))
    found = balance.lay_out(costs, 2, devices)
    best = min(
        max(by_hand(costs, np.reshape(places, (2, 3)), device) for device in range(devices))
        for places in itertools.product(range(devices), repeat=6)
    )
    assert max(balance.seconds(costs, found, devices)) <= 1.1 * best


@pytest.mark.parametrize("parts", [4, 8])
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 12])
def test_table_one_is_balanced(parts, devices):
    part = Costs(*(tuple(s / parts for s in times) for times in TABLE_ONE))
    owners = balance.lay_out(part, parts, devices)
    assert owners.shape == (parts, 6)
    assert set(owners.ravel()) == set(range(devices))
    assert balance.imbalance(part, owners, devices) < 1.25
    if parts % devices == 0:  # whole parts, and no part of the teacher twice
        assert balance.imbalance(part, owners, devices) == pytest.approx(1.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_unit_has_a_device(parts):
    for devices in range(1, 6 * parts + 3):
        owners = balance.lay_out(TABLE_ONE, parts, devices)
        assert owners.min() >= 0 and owners.max() < devices


def test_shares_of_the_same_blocks_stand_side_by_side():
    owners = np.array([[0, 1], [0, 0], [1, 0], [0, 1]])
    assert balance.shares(owners, 0) == (
        *(Share((0,), 0), Share((0,), 3)),
        *(Share((0, 1), 1), Share((1,), 2)),
    )
    assert balance.shares(owners, 1) == (Share((0,), 2), Share((1,), 0), Share((1,), 3))
    assert balance.shares(owners, 2) == ()
