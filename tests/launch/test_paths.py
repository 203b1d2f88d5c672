"""Paths of the supernet by themselves: what steps are made of, how they are drawn and compared."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qnas_jax import space
from qnas_jax.bwnas import distill
from qnas_jax.nn import supernet
from qnas_jax.nn.mbconv import BlockPath
from small_supernet import (
    BLOCKS,
    DECAY,
    KEY,
    OPS,
    SPACE,
    fair,
    features,
    named,
    of_op,
    random_state,
    same,
    uniform,
)


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def alone(state):
    """NSR and gradients of each path of the first block by itself."""
    x, target = features()[:2]

    def nsr(params, ops):
        variables = {"params": supernet.path_params(params, ops)}
        output = BlockPath(BLOCKS[0], ops).apply(variables, x, train=True)
        noise = jnp.mean((output - target) ** 2, (0, 1, 2))
        return jnp.mean(noise / (jnp.var(target, (0, 1, 2)) + 1e-6))

    paths = [(a, b) for a in OPS for b in OPS]
    run = jax.jit(lambda params: [jax.value_and_grad(nsr)(params, path) for path in paths])
    return dict(zip(paths, run(state[0].params), strict=True))


def _momentum(block_state):
    """After the first step, the gradients (with decay, if there is any)."""

    def is_trace(state):
        return isinstance(state, optax.TraceState)

    states = jax.tree.leaves(block_state.optimizer, is_leaf=is_trace)
    (found,) = filter(is_trace, states)
    return found.trace


def _close(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in leaves)


def test_a_fair_step_is_the_sum_over_one_permutation_of_paths(state, alone):
    a, b = OPS
    drawn = {((a, a), (b, b)): 0, ((a, b), (b, a)): 0}
    for number in range(20):
        new, values = fair(state, features(), number)
        fitting = []
        for pair in drawn:
            nsr = np.mean([alone[path][0] for path in pair])
            summed = jax.tree.map(jnp.add, *(alone[path][1] for path in pair))
            if np.isclose(values["nsr_block1"], nsr, rtol=1e-5):
                assert _close(_momentum(new[0]), summed)
                fitting.append(pair)
        assert len(fitting) == 1
        drawn[fitting[0]] += 1
    assert min(drawn.values()) >= 3


def test_a_uniform_step_is_the_gradient_of_one_path(state, alone):
    drawn = set()
    for number in range(12):
        new, values = uniform(state, features(), number)
        sampled = [
            op
            for layer in (0, 1)
            for op in OPS
            if not same(of_op(state[0], layer, op), of_op(new[0], layer, op))
        ]
        nsr, gradients = alone[tuple(sampled)]
        drawn.add(tuple(sampled))
        np.testing.assert_allclose(values["nsr_block1"], nsr, rtol=1e-5)
        found, gradients, weights = (
            named(supernet.path_params(tree, tuple(sampled)))
            for tree in (_momentum(new[0]), gradients, state[0].params)
        )
        for name in (name for name in found if "kernel" in name):  # they are what decays
            decayed = gradients[name] + DECAY * weights[name]
            np.testing.assert_allclose(found[name], decayed, rtol=1e-4, atol=1e-5)
    assert drawn == set(alone)


@pytest.mark.slow
def test_parts_of_a_batch_are_normed_by_themselves_and_averaged(state):
    x, target, _ = (
        jnp.concatenate([a, 3 * b]) for a, b in zip(features(0), features(1), strict=True)
    )
    recipe = distill.Recipe(None, SPACE, (), distill.SAMPLING["fair"], KEY)
    find = functools.partial(distill.block_gradients, recipe, 0, state[0].params)
    nsr, gradients = find((x, target), jnp.int32(3), parts=2)
    halves = [find((x[i : i + 2], target[i : i + 2]), jnp.int32(3), parts=1) for i in (0, 2)]
    np.testing.assert_allclose(nsr, np.mean([half[0] for half in halves]), rtol=1e-5)
    assert _close(gradients, jax.tree.map(lambda a, b: (a + b) / 2, *(g for _, g in halves)))
    whole, _ = find((x, target), jnp.int32(3), parts=1)
    assert abs(whole / nsr - 1) > 1e-3


def test_paths_are_drawn_uniformly():
    keys = jax.random.split(jax.random.key(0), 4000)
    paths = jax.vmap(lambda key: distill.uniform_path(key, BLOCKS[0], OPS))(keys)
    counts = np.bincount(2 * paths[:, 0] + paths[:, 1], minlength=4)
    # Four standard deviations of a binomial count.
    assert np.all(np.abs(counts - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)), counts


ALL_PATHS = [np.array(list(itertools.product((0, 1), repeat=b.depth))) for b in BLOCKS]


def test_the_nsr_of_paths_is_that_of_their_modules_by_themselves(state, monkeypatch):
    """By NumPy, the mean of two batches; all paths of a block are traced once."""
    traces, one_path = [], supernet.one_path
    monkeypatch.setattr(supernet, "one_path", lambda *a: traces.append(a[1]) or one_path(*a))
    params = [block.params for block in state]
    batches = [features(0), features(1)]
    found = distill.path_nsr(SPACE, params, iter(batches), ALL_PATHS)
    assert traces == list(BLOCKS)
    for i, block in enumerate(BLOCKS):
        expected = []
        for path in ALL_PATHS[i]:
            ops = tuple(OPS[op] for op in path)
            variables = {"params": supernet.path_params(params[i], ops)}
            each = []
            for maps in batches:
                output = BlockPath(block, ops).apply(variables, maps[i], train=True)
                target = np.asarray(maps[i + 1], np.float64)
                noise = ((np.asarray(output) - target) ** 2).mean((0, 1, 2))
                each.append((noise / (target.var((0, 1, 2)) + 1e-6)).mean())
            expected.append(np.mean(each))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)
        assert len(np.unique(np.round(expected, 4))) == len(expected), "paths must differ"


def test_the_training_nsr_is_that_of_its_paths_on_the_batch(state):
    """So that both may be compared."""
    params = [block.params for block in state]
    alone = distill.path_nsr(SPACE, params, [features()], ALL_PATHS)
    _, values = uniform(state, features(), 0)
    for i, nsr in enumerate(values.values()):
        assert np.isclose(alone[i], nsr, rtol=1e-4).sum() == 1


@pytest.mark.parametrize(("depth", "rows"), [(1, 6), (2, 36), (3, 216)])
def test_compared_paths_are_the_largest_the_smallest_and_different_random_ones(depth, rows):
    ops = tuple(space.Op(kernel, expansion) for kernel in (7, 3, 5) for expansion in (3, 6))
    block = space.Block(4, 6, 2, 1, depth)
    found = distill.compared_paths(block, ops, 10, jax.random.key(0))
    largest, smallest, *random = [tuple(ops[op] for op in path) for path in found]
    assert largest == (space.Op(7, 6),) * depth
    assert smallest == (space.Op(3, 3),) * depth
    assert len(set(random)) == len(random) == min(10, rows)
    again = distill.compared_paths(block, ops, 10, jax.random.key(0))
    np.testing.assert_array_equal(found, again)
    if depth > 1:
        other = distill.compared_paths(block, ops, 10, jax.random.key(1))
        assert not np.array_equal(found, other)
