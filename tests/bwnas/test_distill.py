"""Steps of the supernet: what they change, and what they depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas import distill
from qnas_jax.train.optimizers import sgd as momentum
from small_supernet import (
    BLOCKS,
    KEY,
    OPS,
    SPACE,
    fair,
    features,
    named,
    of_op,
    random_state,
    same,
    sgd,
    uniform,
)


@pytest.fixture(scope="module")
def state():
    return random_state()


def _positions():
    return [(i, layer) for i, block in enumerate(BLOCKS) for layer in range(block.depth)]


def test_a_fair_step_changes_every_part_of_every_op(state):
    new, _ = fair(state, features(), 0)
    for i, layer in _positions():
        for op in OPS:
            before, after = of_op(state[i], layer, op), of_op(new[i], layer, op)
            for name in before:
                assert not np.array_equal(before[name], after[name]), name


def test_a_uniform_step_leaves_the_ops_alone_that_were_not_sampled(state):
    sampled = {position: set() for position in _positions()}
    for number in range(12):
        new, _ = uniform(state, features(), number)
        for i, layer in _positions():
            changed = [
                op for op in OPS if not same(of_op(state[i], layer, op), of_op(new[i], layer, op))
            ]
            assert len(changed) == 1
            sampled[i, layer].add(changed[0])
            before, after = (of_op(s[i], layer, changed[0]) for s in (state, new))
            assert all(not np.array_equal(before[name], after[name]) for name in before)
        state = new
    # By then every op has gathered momentum that would have moved it.
    assert all(ops == set(OPS) for ops in sampled.values())


def test_the_schedule_goes_on_for_every_block(state):
    for number in range(2):
        state, _ = uniform(state, features(), number)
    for block_state in state:
        counts = [leaf for name, leaf in named(block_state).items() if name.endswith(".count")]
        assert counts and all(count == 2 for count in counts)


@pytest.mark.parametrize("run", [fair, uniform], ids=["fair", "uniform"])
def test_the_nsr_decreases_on_fixed_features(run, state):
    curve = []
    for number in range(40):
        state, values = run(state, features(), number)
        assert list(values) == ["nsr_block1", "nsr_block2"]
        curve.append([float(value) for value in values.values()])
    first, last = np.mean(curve[:4], 0), np.mean(curve[-4:], 0)
    assert np.all(last < 0.8 * first), (first, last)


def test_the_same_number_gives_the_same_step(state):
    for run in (fair, uniform):
        first, again, *later = (named(run(state, features(), number)) for number in (3, 3, 4, 5, 6))
        assert same(first, again)
        assert not all(same(first, other) for other in later)


@pytest.mark.parametrize("run", [fair, uniform], ids=["fair", "uniform"])
def test_a_block_does_not_depend_on_the_others(run, state):
    a, b = features(0), features(1)
    new, values = run(state, a, 0)
    moved = state[1]._replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, state[1].params))
    other, other_values = run((state[0], moved), (a[0], a[1], b[2]), 0)
    assert same(named(new[0]), named(other[0]))
    assert values["nsr_block1"] == other_values["nsr_block1"]
    assert values["nsr_block2"] != other_values["nsr_block2"]
    moved = state[0]._replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, state[0].params))
    other, other_values = run((moved, state[1]), (b[0], a[1], a[2]), 0)
    assert same(named(new[1]), named(other[1]))
    assert values["nsr_block2"] == other_values["nsr_block2"]
    assert values["nsr_block1"] != other_values["nsr_block1"]


def test_blocks_and_keys_begin_with_weights_of_their_own():
    twins = space.Space((BLOCKS[1], BLOCKS[1]), OPS[:1])
    optimizers = (momentum(0.1, 1, 1.0, 0.9, 0.0),) * 2
    states = [distill.fresh_state(twins, optimizers, jax.random.key(seed)) for seed in (0, 1)]
    kernels = [s.params["layer0"]["k3e2"]["expand"]["kernel"] for state in states for s in state]
    assert len(np.unique(kernels)) == 4 * 6 * 12


def test_what_each_block_is_given_and_its_key():
    """The step with a loss whose gradients are one and which reports its arguments."""
    seen = []

    def loss(params, batch, key):
        seen.append((batch.block, batch.ops))
        sums = map(jnp.sum, (batch.x, batch.target, batch.variance))
        return jnp.sum(params["w"]), jnp.stack([*sums, jax.random.uniform(key)])

    optimizers = tuple(momentum(lr, 10, 1.0, 0.0, 0.0) for lr in (0.5, 0.25))
    params = {"w": jnp.arange(3.0)}
    state = tuple(distill.BlockState(params, o.init(params)) for o in optimizers)
    maps = features()
    draws = []
    for key in (0, 1):
        recipe = distill.Recipe(
            lambda teacher, images: tuple(teacher + m for m in images),
            SPACE,
            optimizers,
            distill.Sampling(loss, None),
            jax.random.key(key),
        )
        step = functools.partial(distill.train_step(recipe), jnp.float32(2.0))
        for number in (0, 1, 0):
            new, values = step(state, maps, None, jnp.int32(number))
            draws.append([float(values[f"nsr_block{i}"][3]) for i in (1, 2)])
    assert seen == [(block, OPS) for block in BLOCKS] * 2
    for i, lr in enumerate((0.5, 0.25)):
        told = values[f"nsr_block{i + 1}"]
        x, target = (np.asarray(m, np.float64) + 2 for m in maps[i : i + 2])
        expected = [x.sum(), target.sum(), target.var((0, 1, 2)).sum()]
        np.testing.assert_allclose(told[:3], expected, rtol=1e-5)
        np.testing.assert_allclose(new[i].params["w"], np.arange(3) - lr, rtol=1e-6)
    assert draws[0] == draws[2] and draws[3] == draws[5]
    # Two steps of two blocks with two keys: eight draws, all different.
    assert len(set(np.ravel(draws))) == 8


@pytest.mark.slow
def test_bfloat16_changes_the_arithmetic_and_nothing_else(state):
    steps = {}
    for compute in ("float32", "bfloat16"):
        recipe = distill.Recipe(
            lambda teacher, images: images,
            SPACE,
            sgd(0.0),
            distill.SAMPLING["fair"],
            KEY,
            compute=compute,
        )
        steps[compute] = distill.train_step(recipe)({}, state, features(), None, jnp.int32(0))
    (exact, nsr), (rounded, near) = steps["float32"], steps["bfloat16"]
    for i in (0, 1):
        name = f"nsr_block{i + 1}"
        assert nsr[name].dtype == near[name].dtype == jnp.float32
        assert 0 < abs(float(near[name] / nsr[name]) - 1) < 0.01  # it has 8 bits
        flat = [
            jnp.concatenate([g.ravel() for g in jax.tree.leaves(new[i].optimizer)[:-1]])
            for new in (exact, rounded)
        ]
        cosine = jnp.vdot(*flat) / jnp.linalg.norm(flat[0]) / jnp.linalg.norm(flat[1])
        assert cosine > 0.99
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, new) for new in (exact, rounded)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("run", [fair, uniform], ids=["fair", "uniform"])
def test_no_traced_value_outlives_a_step(run, state, no_leaks):
    jax.eval_shape(run, state, features(), 0)
