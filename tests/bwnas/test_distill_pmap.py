"""Blocks and parts of a batch on several devices, which XLA makes up in a process apart."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas import balance, distill, distill_pmap
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
STEPS, BATCH = 2, 8


def features(teacher, images):
    """Stands in for a teacher: maps that depend on the image alone."""
    maps = [images * teacher]
    for block in BLOCKS:
        x = maps[-1][:, :: block.stride, :: block.stride]
        x = jnp.concatenate([x, x[..., ::-1]], -1)[..., : block.channels]
        maps.append(jnp.sin(3 * x) + 0.1 * jnp.arange(block.channels)[None, None, None])
    return tuple(maps)


def recipe(sampling):
    optimizers = tuple(sgd(0.02, 50, 0.9, 0.9, 1e-3) for _ in BLOCKS)
    key = jax.random.key(3)
    return distill.Recipe(features, SEARCHED, optimizers, distill.SAMPLING[sampling], key, parts=4)


def trained(steps, state, per_dispatch, places=range(BATCH)):
    """The NSRs of some steps and the state behind them; `places` are the images that are read."""
    images = np.random.default_rng(0).normal(size=(STEPS, BATCH, 6, 8, 4)).astype(np.float32)
    images = images[:, list(places)]
    found = []
    for first in range(0, STEPS, per_dispatch):
        span = slice(first, first + per_dispatch)
        state, values = steps(state, images[span], None, jnp.arange(STEPS)[span])
        found.append(np.stack([values[distill.metric(i)] for i in range(len(BLOCKS))], 1))
    return np.concatenate(found), state


def compare(sampling, counts):
    """How far so many devices are from one device: of NSR and of weights."""
    how, teacher = recipe(sampling), jnp.float32(1.1)
    fresh = distill.fresh_state(SEARCHED, how.optimizers, jax.random.key(0))
    steps = loop.several(distill.train_step(how), teacher)
    nsr, state = trained(steps, jax.tree.map(jnp.copy, fresh), 1)
    return {devices: _distance(how, teacher, fresh, devices, nsr, state) for devices in counts}


def _distance(how, teacher, fresh, devices, nsr, state):
    costs = balance.Costs(COSTS, (0.1, 0.2, 0.3))
    owners = balance.lay_out(costs, how.parts, devices)
    together = distill_pmap.train_step(how, teacher, owners, jax.devices()[:devices], BATCH)
    found, spread = trained(together.steps, together.layout.spread(fresh), STEPS, together.places)
    again = together.layout.gather(spread)
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
        ("fair", "5"),
        pytest.param("fair", "1 2 3 4 6 8 12 13", marks=pytest.mark.slow),
        pytest.param("uniform", "1 2 3 4 6 8 12 13", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_trains_like_one(sampling, counts):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=13",
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


def test_what_units_cost_is_measured():
    how, teacher = recipe("fair"), jnp.float32(1.1)
    state = distill.fresh_state(SEARCHED, how.optimizers, jax.random.key(0))
    found = distill_pmap.measured(how, teacher, state, np.ones((2, 6, 8, 4), np.float32))
    assert len(found.blocks) == len(found.teacher) == len(BLOCKS)
    assert all(0 < seconds < 10 for times in found for seconds in times)


def test_every_device_finds_its_parts_among_those_that_are_read():
    share = balance.Share
    mine = [[share((0,), 2), share((1,), 0)], [], [share((0, 1), 2)]]
    order, slots = distill_pmap._read(mine, 3)
    assert order == [0, 2], "each part is read once"
    assert slots.shape == (3, 3)
    assert [order[i] for i in slots[0, :2]] == [2, 0]
    assert order[slots[2, 0]] == 2


@pytest.mark.parametrize(
    ("processes", "each", "parts"), [(2, 1, 3), (3, 1, 4), (8, 2, 1), (4, 4, 8)]
)
def test_all_processes_have_programs_of_one_shape_even_without_work(processes, each, parts):
    costs = balance.Costs(
        (0.37, 0.13, 0.35, 1.00, 1.52, 0.47), (0.05, 0.07, 0.10, 0.16, 0.22, 0.25)
    )
    owners = balance.lay_out(costs, parts, processes * each)
    work = [balance.shares(owners, device) for device in range(processes * each)]
    most = max(map(len, work))
    for first in range(0, processes * each, each):
        order, slots = distill_pmap._read(work[first : first + each], most)
        assert slots.shape == (each, most)
        assert len(order) == len(set(order)) >= 1 and slots.max() < len(order)
