import itertools

import pytest

from qnas_jax.run import parallel

COSTS = (1.5, 0.5, 2.0, 4.0, 2.5, 0.3)


def cost(group):
    return sum(COSTS[i] for i in group)


def test_partitions_are_all_and_each_once():
    # Bell and Stirling numbers.
    assert len(list(parallel.partitions(6, 6))) == 203
    assert len(list(parallel.partitions(6, 2))) == 1 + 31
    found = [frozenset(map(frozenset, groups)) for groups in parallel.partitions(5, 3)]
    assert len(found) == len(set(found)) == 1 + 15 + 25
    assert all(sorted(itertools.chain(*groups)) == list(range(5)) for groups in found)


@pytest.mark.parametrize("devices", range(1, 7))
def test_groups_are_those_of_brute_force(devices):
    groups = parallel.lay_out(cost, 6, devices, parts=1)
    assert groups.replicas == 1
    slowest = min(
        max(sum(c for c, at in zip(COSTS, places, strict=True) if at == d) for d in range(devices))
        for places in itertools.product(range(devices), repeat=6)
    )
    assert parallel.cost_of_slowest(cost, groups.members) == pytest.approx(slowest)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 12, 64])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_more_devices_are_never_slower_and_never_more_than_there_are(devices, parts):
    groups = parallel.lay_out(cost, 6, devices, parts)
    assert parts % groups.replicas == 0
    assert len(groups.members) * groups.replicas <= devices
    here, fewer = (
        parallel.cost_of_slowest(cost, found.members) / found.replicas
        for found in (groups, parallel.lay_out(cost, 6, max(devices - 1, 1), parts))
    )
    assert here <= fewer


def test_one_process_has_all_of_a_batch():
    assert parallel.share(8) == range(8)
