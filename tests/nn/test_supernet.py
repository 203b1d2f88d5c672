import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from qnas_jax import space
from qnas_jax.nn import init, supernet
from qnas_jax.nn.mbconv import BlockPath

OPS = (space.Op(3, 2), space.Op(5, 2), space.Op(3, 3))
BLOCK = space.Block(in_channels=4, channels=6, stride=2, dilation=1, depth=3)
PATHS = list(itertools.product(range(len(OPS)), repeat=BLOCK.depth))


@pytest.fixture(scope="module")
def drawn():
    """The supernet's parameters, an input, and what each path by itself makes of it."""
    params = reference.random_block(BLOCK, OPS)
    x, _ = reference.random_maps(BLOCK, 2, (5, 7))
    outputs = {}
    for path in PATHS:
        ops = tuple(OPS[op] for op in path)
        variables = {"params": supernet.path_params(params, ops)}
        outputs[path] = np.asarray(BlockPath(BLOCK, ops).apply(variables, x, train=True))
    return params, x, outputs


def test_fair_paths_are_block_paths_whatever_the_permutations(drawn):
    params, x, outputs = drawn
    run = jax.jit(lambda orders: supernet.fair_paths(params, BLOCK, OPS, x, orders))
    permutations = itertools.permutations(range(len(OPS)))
    for orders in itertools.product(permutations, repeat=BLOCK.depth - 1):
        found = run(jnp.array(orders))
        paths = []
        for last in range(len(OPS)):
            path = [last]
            for order in reversed(orders):
                path.insert(0, order[path[0]])
            paths.append(tuple(path))
            np.testing.assert_allclose(found[last], outputs[paths[-1]], rtol=1e-5, atol=1e-5)
        for ops_of_a_layer in zip(*paths, strict=True):
            assert sorted(ops_of_a_layer) == [0, 1, 2]


def test_one_path_is_its_block_path_and_one_trace_serves_all(drawn):
    params, x, outputs = drawn
    traces = []

    @jax.jit
    def run(path):
        traces.append(path)
        return supernet.one_path(params, BLOCK, OPS, x, path)

    for path in PATHS:
        np.testing.assert_allclose(run(jnp.array(path)), outputs[path], rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_the_paths_outputs_differ(drawn):
    """So that the comparisons above tell paths apart."""
    _, _, outputs = drawn
    flat = np.stack([output.ravel() for output in outputs.values()])
    distances = np.abs(flat[:, None] - flat).max(-1) + 9 * np.eye(len(flat))
    assert distances.min() > 0.1


def test_fresh_parameters_are_every_ops_at_every_layer_drawn_apart():
    params = supernet.init_block(jax.random.key(0), BLOCK, OPS)
    assert list(params) == ["layer0", "layer1", "layer2"]
    for layer in params.values():
        assert set(layer) == {"k3e2", "k5e2", "k3e3"}
    for op in OPS:
        ops = (op,) * BLOCK.depth
        path = supernet.path_params(params, ops)
        image = jax.ShapeDtypeStruct((1, 5, 7, 4), jnp.float32)
        fresh = jax.eval_shape(BlockPath(BLOCK, ops).init, jax.random.key(0), image)
        assert jax.tree.map(jnp.shape, path) == jax.tree.map(jnp.shape, fresh["params"])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [np.ravel(leaf)[:18] for path, leaf in leaves if path[-1].key == "kernel"]
    assert len(kernels) == 27 and len(np.unique(np.concatenate(kernels))) == 27 * 18


def _tree(*names, value):
    return {name: jnp.full(2, float(value + i)) for i, name in enumerate(names)}


def test_with_blocks_takes_blocks_from_the_supernet_and_the_rest_from_the_teacher():
    parts = ("stem", "block0", "block1", "block2")
    fresh = {
        "params": {"encoder": _tree(*parts, value=10), "aspp": jnp.zeros(1)},
        "batch_stats": {"encoder": _tree(*parts, value=20), "aspp": jnp.zeros(1)},
        "quant": {"encoder": _tree(*parts, value=30)},
    }
    teacher = {
        "params": {"encoder": _tree(*parts, value=40), "aspp": jnp.ones(1)},
        "batch_stats": {"encoder": _tree(*parts, value=50), "aspp": jnp.ones(1)},
    }
    blocks = _tree("block1", "block2", value=60)
    untouched = jax.tree.map(jnp.copy, (fresh, teacher, blocks))
    found = supernet.with_blocks(fresh, teacher, blocks)
    expected = {
        "params": {
            "encoder": {**_tree("stem", "block0", value=40), **blocks},
            "aspp": jnp.ones(1),
        },
        "batch_stats": {
            "encoder": {
                **_tree("stem", "block0", value=50),
                **_tree("block1", "block2", value=22),
            },
            "aspp": jnp.ones(1),
        },
        "quant": fresh["quant"],
    }
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, (fresh, teacher, blocks), untouched)


def test_a_path_of_the_supernet_fits_a_network_and_gives_the_same_there(drawn):
    params, x, outputs = drawn
    ops = (OPS[1], OPS[2], OPS[0])
    fresh = init.initialize(BlockPath(BLOCK, ops), jax.random.key(0), x.shape)
    variables = {**fresh, "params": supernet.path_params(params, ops)}
    del variables["quant"]
    found, _ = BlockPath(BLOCK, ops).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(found, outputs[1, 2, 0], rtol=1e-5, atol=1e-5)


def test_no_traced_value_outlives_a_pass(drawn, no_leaks):
    params, x, _ = drawn
    orders = jnp.zeros((BLOCK.depth - 1, len(OPS)), jnp.int32)
    jax.eval_shape(lambda x: supernet.fair_paths(params, BLOCK, OPS, x, orders), x)
    path = jnp.zeros(BLOCK.depth, jnp.int32)
    jax.eval_shape(lambda x: supernet.one_path(params, BLOCK, OPS, x, path), x)
