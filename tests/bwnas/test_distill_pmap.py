"""Groups of blocks on several devices; the devices are made up by XLA, in a process apart."""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas import distill, distill_pmap
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.trace import Unit
from qnas_jax.train import loop
from qnas_jax.train.optimizers import sgd

OPS = (space.Op(3, 2), space.Op(5, 2))
BLOCKS = (
    space.Block(4, 6, 2, 1, 2),
    space.Block(6, 6, 1, 2, 1),
    space.Block(6, 8, 1, 1, 1),
)
SEARCHED = space.Space(BLOCKS, OPS)
COSTS = (2.0, 1.0, 1.0)
STEPS = 2


def features(teacher, images):
    """Stands in for a teacher: maps that depend on the image alone."""
    maps = [images * teacher]
    for block in BLOCKS:
        x = maps[-1][:, :: block.stride, :: block.stride]
        x = jnp.concatenate([x, x[..., ::-1]], -1)[..., : block.channels]
        maps.append(jnp.sin(3 * x) + 0.1 * jnp.arange(block.channels))
    return tuple(maps)


def recipe(sampling):
    optimizers = tuple(sgd(0.02, 50, 0.9, 0.9, 1e-3) for _ in BLOCKS)
    key = jax.random.key(3)
    return distill.Recipe(features, SEARCHED, optimizers, distill.SAMPLING[sampling], key, parts=4)


def trained(steps, state, per_dispatch):
    """The NSRs of some steps and the state behind them."""
    images = np.random.default_rng(0).normal(size=(STEPS, 8, 6, 8, 4)).astype(np.float32)
    found = []
    for first in range(0, STEPS, per_dispatch):
        span = slice(first, first + per_dispatch)
        state, values = steps(state, images[span], None, jnp.arange(STEPS)[span])
        found.append(np.stack([values[distill.metric(i)] for i in range(len(BLOCKS))], 1))
    return np.concatenate(found), state


def compare(sampling, counts):
    """How far groups on so many devices are from one device: of NSR and of weights."""
    how, teacher = recipe(sampling), jnp.float32(1.1)
    fresh = distill.fresh_state(SEARCHED, how.optimizers, jax.random.key(0))
    steps = loop.several(distill.train_step(how), teacher)
    nsr, state = trained(steps, jax.tree.map(jnp.copy, fresh), 1)
    return {devices: _distance(how, teacher, fresh, devices, nsr, state) for devices in counts}


def _distance(how, teacher, fresh, devices, nsr, state):
    groups = distill_pmap.lay_out(lambda group: sum(COSTS[i] for i in group), 3, devices, how.parts)
    used = jax.devices()[: len(groups.members) * groups.replicas]
    together = distill_pmap.train_step(how, teacher, fresh, groups, used)
    found, flat = trained(together.steps, together.layout.spread(fresh), STEPS)
    again = together.layout.gather(flat)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    pairs = list(zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True))
    assert all(a.dtype == b.dtype for a, b in pairs)
    worst = max(float(jnp.abs(a - b).max() / (1e-3 + jnp.abs(b).max())) for a, b in pairs)
    return [float(np.abs(found / nsr - 1).max()), worst]


SCRIPT = """
import json, sys, test_distill_pmap
print(json.dumps(test_distill_pmap.compare(sys.argv[1], [int(n) for n in sys.argv[2:]])))
"""


@pytest.mark.parametrize(
    ("sampling", "counts"),
    [
        ("fair", "6"),
        pytest.param("fair", "1 2 3 4 8", marks=pytest.mark.slow),
        pytest.param("uniform", "1 2 3 4 6 8", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_trains_like_one(sampling, counts):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    command = [sys.executable, "-c", SCRIPT, sampling, *counts.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert list(found) == counts.split()
    for nsr, weights in found.values():
        assert nsr < 1e-5
        assert weights < 1e-3  # of the largest of its kind; gradients near zero are rounding


def test_a_group_costs_its_blocks_and_the_teacher_ahead_of_them():
    def unit(block=None, depthwise=False):
        site = None if block is None else space.Site(block, 0, "x")
        return Unit("x", ConvBnAct(4, depthwise=depthwise), (), (6, 8, 4), (6, 8, 4), site)

    teacher = [unit(), unit(0, depthwise=True), unit(1), unit(2)]
    cost = distill_pmap.step_cost(SEARCHED, (12, 16), teacher, depthwise=7.0)
    one = 6 * 8 * 16  # of a convolution of 4 to 4 channels
    ahead = one + 7.0 * one / 4
    # Block 2 reads 6 x 8 pixels behind block 1, whose stride is 2: 6 channels, 12 hidden.
    macs = sum(48 * (6 * 12 + 7.0 * op.kernel**2 * 12 + 12 * 6) for op in OPS)
    assert cost((1,)) == pytest.approx(3 * macs + ahead + one)
    assert cost((0, 1)) == pytest.approx(cost((0,)) + 3 * macs + one)


def test_what_a_depthwise_product_costs_is_measured():
    """On any machine it takes longer than a dense one, of which each value read serves many."""
    assert 1.0 < distill_pmap.depthwise_cost(16, 32) < 1000.0


BLOCK_COSTS = (1.5, 0.5, 2.0, 4.0, 2.5, 0.3)


def block_costs(group):
    return sum(BLOCK_COSTS[i] for i in group)


def test_partitions_are_all_and_each_once():
    # Bell and Stirling numbers.
    assert len(list(distill_pmap.partitions(6, 6))) == 203
    assert len(list(distill_pmap.partitions(6, 2))) == 1 + 31
    found = [frozenset(map(frozenset, groups)) for groups in distill_pmap.partitions(5, 3)]
    assert len(found) == len(set(found)) == 1 + 15 + 25
    assert all(sorted(itertools.chain(*groups)) == list(range(5)) for groups in found)


@pytest.mark.parametrize("devices", range(1, 7))
def test_groups_are_those_of_brute_force(devices):
    groups = distill_pmap.lay_out(block_costs, 6, devices, parts=1)
    assert groups.replicas == 1
    slowest = min(
        max(
            sum(c for c, at in zip(BLOCK_COSTS, places, strict=True) if at == d)
            for d in range(devices)
        )
        for places in itertools.product(range(devices), repeat=6)
    )
    assert distill_pmap.cost_of_slowest(block_costs, groups.members) == pytest.approx(slowest)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 12, 64])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_more_devices_are_never_slower_and_never_more_than_there_are(devices, parts):
    groups = distill_pmap.lay_out(block_costs, 6, devices, parts)
    assert parts % groups.replicas == 0
    assert len(groups.members) * groups.replicas <= devices
    here, fewer = (
        distill_pmap.cost_of_slowest(block_costs, found.members) / found.replicas
        for found in (groups, distill_pmap.lay_out(block_costs, 6, max(devices - 1, 1), parts))
    )
    assert here <= fewer
