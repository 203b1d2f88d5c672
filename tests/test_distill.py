import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from qnas_jax import distill, segment, space
from qnas_jax.nn import supernet
from qnas_jax.nn.mbconv import BlockPath

OPS = (space.Op(3, 2), space.Op(5, 2))
BLOCKS = (space.Block(4, 6, 2, 1, 2), space.Block(6, 6, 1, 2, 1))
SPACE = space.Space(BLOCKS, OPS)
KEY = jax.random.key(5)
DECAY = 0.01


def _maps(seed=0):
    """What a teacher gives at the boundaries of the blocks."""
    rng = np.random.default_rng(seed)
    shapes = (2, 5, 7, 4), (2, 3, 4, 6), (2, 3, 4, 6)
    return tuple(jnp.asarray(rng.normal(0.5, 1, shape), jnp.float32) for shape in shapes)


def _optimizers(weight_decay):
    return tuple(segment.sgd(lr, 50, 0.9, 0.9, weight_decay) for lr in (0.1, 0.05))


def _step(sampling, weight_decay):
    """The step, with feature maps in the place of images."""
    recipe = distill.Recipe(
        lambda teacher, images: images,
        SPACE,
        _optimizers(weight_decay),
        distill.SAMPLING[sampling],
        KEY,
    )
    step = distill.train_step(recipe)
    return lambda state, maps, number: step({}, state, maps, None, jnp.int32(number))


@pytest.fixture(scope="module")
def state():
    """What both begin with."""
    fresh = distill.fresh_state(SPACE, _optimizers(0.0), jax.random.key(0))
    params = reference.random_block(BLOCKS[0], OPS)
    return (fresh[0]._replace(params=params), fresh[1])


@pytest.fixture(scope="module")
def fair():
    """Without decay, which would change every op even if none were trained."""
    return _step("fair", weight_decay=0.0)


@pytest.fixture(scope="module")
def uniform():
    """With decay and momentum, which must not change what was not sampled."""
    return _step("uniform", weight_decay=DECAY)


def _named(tree):
    """Leaves by their path, the state of an optimizer included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _of_op(block_state, layer, op):
    """Weights and momentum of an op."""
    place = f"['layer{layer}']['{op}']"
    found = {name: leaf for name, leaf in _named(block_state).items() if place in name}
    assert len(found) == 2 * 9, "three kernels, scales and biases, each with its momentum"
    return found


def _same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def _positions():
    return [(i, layer) for i, block in enumerate(BLOCKS) for layer in range(block.depth)]


def test_a_fair_step_changes_every_part_of_every_op(fair, state):
    new, _ = fair(state, _maps(), 0)
    for i, layer in _positions():
        for op in OPS:
            before, after = _of_op(state[i], layer, op), _of_op(new[i], layer, op)
            for name in before:
                assert not np.array_equal(before[name], after[name]), name


def test_a_uniform_step_leaves_the_ops_alone_that_were_not_sampled(uniform, state):
    sampled = {position: set() for position in _positions()}
    for number in range(12):
        new, _ = uniform(state, _maps(), number)
        for i, layer in _positions():
            changed = [
                op
                for op in OPS
                if not _same(_of_op(state[i], layer, op), _of_op(new[i], layer, op))
            ]
            assert len(changed) == 1
            sampled[i, layer].add(changed[0])
            before, after = (_of_op(s[i], layer, changed[0]) for s in (state, new))
            assert all(not np.array_equal(before[name], after[name]) for name in before)
        state = new
    # By then every op has gathered momentum that would have moved it.
    assert all(ops == set(OPS) for ops in sampled.values())


def test_the_schedule_goes_on_for_every_block(uniform, state):
    for number in range(2):
        state, _ = uniform(state, _maps(), number)
    for block_state in state:
        counts = [leaf for name, leaf in _named(block_state).items() if name.endswith(".count")]
        assert counts and all(count == 2 for count in counts)


@pytest.mark.parametrize("sampling", ["fair", "uniform"])
def test_the_nsr_decreases_on_fixed_features(sampling, state, request):
    run = request.getfixturevalue(sampling)
    curve = []
    for number in range(40):
        state, values = run(state, _maps(), number)
        assert list(values) == ["nsr_block1", "nsr_block2"]
        curve.append([float(value) for value in values.values()])
    first, last = np.mean(curve[:4], 0), np.mean(curve[-4:], 0)
    assert np.all(last < 0.8 * first), (first, last)


def test_the_same_number_gives_the_same_step(fair, uniform, state):
    for run in (fair, uniform):
        first, again, *later = (_named(run(state, _maps(), number)) for number in (3, 3, 4, 5, 6))
        assert _same(first, again)
        assert not all(_same(first, other) for other in later)


@pytest.mark.parametrize("sampling", ["fair", "uniform"])
def test_a_block_does_not_depend_on_the_others(sampling, state, request):
    run = request.getfixturevalue(sampling)
    a, b = _maps(0), _maps(1)
    new, values = run(state, a, 0)
    moved = state[1]._replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, state[1].params))
    other, other_values = run((state[0], moved), (a[0], a[1], b[2]), 0)
    assert _same(_named(new[0]), _named(other[0]))
    assert values["nsr_block1"] == other_values["nsr_block1"]
    assert values["nsr_block2"] != other_values["nsr_block2"]
    moved = state[0]._replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, state[0].params))
    other, other_values = run((moved, state[1]), (b[0], a[1], a[2]), 0)
    assert _same(_named(new[1]), _named(other[1]))
    assert values["nsr_block2"] == other_values["nsr_block2"]
    assert values["nsr_block1"] != other_values["nsr_block1"]


def test_blocks_and_keys_begin_with_weights_of_their_own():
    twins = space.Space((BLOCKS[1], BLOCKS[1]), OPS[:1])
    optimizers = (segment.sgd(0.1, 1, 1.0, 0.9, 0.0),) * 2
    states = [distill.fresh_state(twins, optimizers, jax.random.key(seed)) for seed in (0, 1)]
    kernels = [s.params["layer0"]["k3e2"]["expand"]["kernel"] for state in states for s in state]
    assert len(np.unique(kernels)) == 4 * 6 * 12


def test_what_each_block_is_given_and_its_key():
    """The step with a stand-in for the gradients that tells what it was called with."""
    seen = []

    def gradients(params, block, ops, x, target, variance, key):
        seen.append((block, ops))
        told = jnp.sum(x), jnp.sum(target), jnp.sum(variance), jax.random.uniform(key)
        return jnp.stack(told), jax.tree.map(jnp.ones_like, params)

    optimizers = tuple(segment.sgd(lr, 10, 1.0, 0.0, 0.0) for lr in (0.5, 0.25))
    params = {"w": jnp.arange(3.0)}
    state = tuple(distill.BlockState(params, o.init(params)) for o in optimizers)
    maps = _maps()
    draws = []
    for key in (0, 1):
        recipe = distill.Recipe(
            lambda teacher, images: tuple(teacher + m for m in images),
            SPACE,
            optimizers,
            distill.Sampling(gradients, None),
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


def test_bfloat16_changes_the_arithmetic_and_nothing_else(state):
    steps = {}
    for compute in ("float32", "bfloat16"):
        recipe = distill.Recipe(
            lambda teacher, images: images,
            SPACE,
            _optimizers(0.0),
            distill.SAMPLING["fair"],
            KEY,
            compute=compute,
        )
        steps[compute] = distill.train_step(recipe)({}, state, _maps(), None, jnp.int32(0))
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


@pytest.fixture(scope="module")
def alone(state):
    """NSR and gradients of each path of the first block by itself."""
    x, target = _maps()[:2]

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


def test_a_fair_step_is_the_sum_over_one_permutation_of_paths(fair, state, alone):
    a, b = OPS
    drawn = {((a, a), (b, b)): 0, ((a, b), (b, a)): 0}
    for number in range(20):
        new, values = fair(state, _maps(), number)
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


def test_a_uniform_step_is_the_gradient_of_one_path(uniform, state, alone):
    drawn = set()
    for number in range(12):
        new, values = uniform(state, _maps(), number)
        sampled = [
            op
            for layer in (0, 1)
            for op in OPS
            if not _same(_of_op(state[0], layer, op), _of_op(new[0], layer, op))
        ]
        nsr, gradients = alone[tuple(sampled)]
        drawn.add(tuple(sampled))
        np.testing.assert_allclose(values["nsr_block1"], nsr, rtol=1e-5)
        found, gradients, weights = (
            _named(supernet.path_params(tree, tuple(sampled)))
            for tree in (_momentum(new[0]), gradients, state[0].params)
        )
        for name in (name for name in found if "kernel" in name):  # they are what decays
            decayed = gradients[name] + DECAY * weights[name]
            np.testing.assert_allclose(found[name], decayed, rtol=1e-4, atol=1e-5)
    assert drawn == set(alone)


def test_parts_of_a_batch_are_normed_by_themselves_and_averaged(state):
    x, target, _ = (jnp.concatenate([a, 3 * b]) for a, b in zip(_maps(0), _maps(1), strict=True))
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
    batches = [_maps(0), _maps(1)]
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


def test_the_training_nsr_is_that_of_its_paths_on_the_batch(uniform, state):
    """So that both may be compared."""
    params = [block.params for block in state]
    alone = distill.path_nsr(SPACE, params, [_maps()], ALL_PATHS)
    _, values = uniform(state, _maps(), 0)
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
