"""Steps of a one-shot supernet: who is trained, when weights change, and by what."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import small_oneshot
from qnas_jax.nn.units import pixels
from qnas_jax.oneshot import supernet
from small_oneshot import LAYERS, NETWORK, OPS, quickly_compiled, random_images, subnet_of

__all__ = ["quickly_compiled"]

KEY = jax.random.key(5)
RATE = 0.1


def loss(logits, labels):
    return jnp.sum(jnp.sin(logits) * labels[:, None, None, None])


@pytest.fixture(scope="module")
def drawn():
    return small_oneshot.drawn()


@functools.cache
def stepping(name):
    """The optimizer and the step of a sampling."""
    sampling = supernet.SAMPLING[name]
    plain = optax.sgd(RATE, 0.9) if name == "uniform" else optax.sgd(RATE)
    optimizer = supernet.optimizer_of(sampling, plain, len(OPS))
    return optimizer, supernet.train_step(NETWORK, loss, sampling, optimizer, KEY)


def batch(number):
    labels = np.random.default_rng(number).normal(size=4).astype(np.float32)
    return random_images(4, seed=number), jnp.asarray(labels)


def trained(name, drawn, count, batches=lambda number: number):
    """The states before the first and after each of `count` steps."""
    params, teacher = drawn
    optimizer, step = stepping(name)
    states = [supernet.init_state(params, optimizer)]
    for number in range(count):
        given = batch(batches(number))
        state, _ = step(teacher["batch_stats"], states[-1], *given, jnp.int32(number))
        states.append(state)
    return states


def path_at(name, number):
    draw = supernet.SAMPLING[name].path
    return tuple(int(op) for op in draw(KEY, jnp.int32(number), LAYERS, len(OPS)))


def paths_of(name, count, layers, ops):
    """The paths of `count` steps in a row, int[count, layers]."""
    draw = supernet.SAMPLING[name].path
    return np.asarray(jax.vmap(lambda n: draw(KEY, n, layers, ops))(jnp.arange(count)))


@pytest.mark.parametrize("ops", [1, 6])
def test_fair_paths_have_each_op_of_each_layer_once(ops):
    turns = paths_of("fair", 20 * ops, 4, ops).reshape(20, ops, 4)
    wanted = np.broadcast_to(np.arange(ops)[:, None], turns.shape)
    np.testing.assert_array_equal(np.sort(turns, 1), wanted)


def test_fair_permutations_differ_by_layer_and_by_turn():
    turns = paths_of("fair", 90, LAYERS, 3).reshape(30, 3, LAYERS)
    assert len({turn.tobytes() for turn in turns}) > 20
    orders = {tuple(turn[:, layer].tolist()) for turn in turns for layer in range(LAYERS)}
    assert orders == set(itertools.permutations(range(3))), "any permutation"


def test_uniform_paths_have_all_ops_about_equally_often():
    paths = paths_of("uniform", 900, LAYERS, 3)
    counts = np.array([np.bincount(layer, minlength=3) for layer in paths.T])
    assert (counts > 230).all() and (counts < 370).all()


@jax.jit
def _zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def own_gradients(params, path, images, labels):
    """Gradients of a subnet's own network, at their places in the shared parameters."""
    subnet = subnet_of(path)
    model, own = small_oneshot.student(subnet), small_oneshot.own_variables(params, subnet)

    @jax.jit
    @jax.grad
    def gradient(own_params):
        variables = {"params": own_params, "batch_stats": own["batch_stats"]}
        logits, _ = model.apply(variables, pixels(images), train=True, mutable=["batch_stats"])
        return loss(logits, labels)

    found = gradient(own["params"])
    encoder = dict(found["encoder"])
    blocks = jax.device_get(_zeros(params["blocks"]))
    for number, block in enumerate(subnet):
        layers = encoder.pop(f"block{number + 1}")
        for layer, choice in enumerate(block):
            blocks[number][f"layer{layer}"][str(choice.op)] = layers[f"layer{layer}"]
    return {"rest": {**found, "encoder": encoder}, "blocks": blocks}


def test_fair_weights_change_after_all_ops_by_the_sum_of_their_gradients(drawn):
    params = drawn[0]
    states = trained("fair", drawn, len(OPS), batches=lambda number: 0)
    for state in states[1:-1]:
        jax.tree.map(np.testing.assert_array_equal, state.params, states[0].params)
    total = _zeros(params)
    for number in range(len(OPS)):
        found = own_gradients(params, path_at("fair", number), *batch(0))
        total = jax.tree.map(jnp.add, total, found)
    expected = jax.tree.map(lambda p, g: p - RATE * g, params, total)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        states[-1].params,
        expected,
    )


def _of_op(tree, block, layer, op):
    """The leaves of an op, of weights or of momentum."""

    def names(path):
        return [getattr(key, "key", getattr(key, "idx", None)) for key in path]

    wanted = [block, f"layer{layer}", str(op)]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        np.asarray(leaf) for path, leaf in leaves
        if any(names(path)[i : i + 3] == wanted for i in range(len(path)))
    ]  # fmt: skip


def test_what_was_not_sampled_keeps_weights_and_momentum(drawn):
    states = trained("uniform", drawn, 4)
    moved = 0
    for number, (old, new) in enumerate(itertools.pairwise(states)):
        path = path_at("uniform", number)
        places = zip([(0, 0), (0, 1), (1, 0)], path, strict=True)
        for (block, layer), sampled in places:
            for place, op in enumerate(OPS):
                before, after = (_of_op(state, block, layer, op) for state in (old, new))
                # A leaf of each weight, and one of its momentum.
                assert len(before) == 2 * len(_of_op(old.params, block, layer, op)) > 0
                same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
                assert same == (place != sampled)
                moved += place == sampled
        kernels = [s.params["rest"]["classifier"]["kernel"] for s in (old, new)]
        assert (kernels[0] != kernels[1]).any(), "the head is on every path"
    assert moved == 4 * LAYERS


@pytest.mark.parametrize("name", ["uniform", "fair"])
def test_steps_depend_on_the_key_and_the_number_alone(name, drawn):
    first, second = (trained(name, drawn, len(OPS))[-1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
