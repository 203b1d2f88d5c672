import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qnas_jax import space
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.tasks import segmentation
from qnas_jax.train import optimizers, supervised

IGNORE = 255


def test_pixels_are_exact():
    every_byte = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = supervised.pixels(jnp.asarray(every_byte))
    np.testing.assert_array_equal(found, every_byte.astype(np.float64) / 128 - 1)
    assert found.dtype == jnp.float32


@pytest.fixture(scope="module")
def network():
    """A small network, its initial variables, and labelled images."""
    encoder = mobilenet.MobileNetV2(4, space.Block(4, 4, 2, 1, 1), (), ())
    model = DeepLabV3(encoder, 4, (), 3, dropout=0.5)
    variables = init.initialize(model, jax.random.key(0), (1, 8, 12, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, (2, 8, 12)).astype(np.uint8)
    labels[:, :2] = IGNORE
    return model, variables, images, labels


def test_predictions_are_those_of_the_task(network):
    model, variables, images, _ = network
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    found = supervised.predictor(model, segmentation.predict)(floats, images)
    pixels = jnp.asarray(images / np.float32(128) - 1)
    logits = jax.jit(model.apply)(floats, pixels)
    expected = np.asarray(segmentation.predict(logits, (8, 12)))
    assert found.dtype == jnp.uint8
    assert (found == expected).mean() > 0.95 and len(np.unique(found)) > 1


def test_a_prediction_does_not_depend_on_the_padding(network):
    model, variables, images, _ = network
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    predict = supervised.predictor(model, segmentation.predict)
    both, padded = predict(floats, images), predict(floats, images * np.uint8([[[[1]]], [[[0]]]]))
    np.testing.assert_array_equal(both[0], padded[0])


@pytest.fixture(scope="module")
def trained(network):
    """A training step, the initial state, and the optimizer."""
    model, variables, *_ = network
    optimizer = optimizers.sgd(0.1, 20, 0.9, 0.9, 1e-3)
    step = supervised.train_step(model, segmentation.loss, optimizer, jax.random.key(1))
    return step, supervised.fresh_state(variables, optimizer), optimizer


@pytest.mark.slow
def test_a_step_in_bfloat16_is_close_to_float32(network, trained):
    model, _, images, labels = network
    step, state, optimizer = trained
    near = supervised.train_step(model, segmentation.loss, optimizer, jax.random.key(1), "bfloat16")
    (exact, loss), (rounded, other) = (
        one(state, images, labels, jnp.int32(3)) for one in (step, near)
    )
    assert 0 < abs(float(other["loss"] / loss["loss"]) - 1) < 0.01
    kinds = [jax.tree.map(lambda leaf: leaf.dtype, new) for new in (exact, rounded)]
    assert kinds[0] == kinds[1]
    before, *after = (
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(new.params)])
        for new in (state, exact, rounded)
    )
    one, other = (new - before for new in after)
    assert jnp.vdot(one, other) > 0.98 * jnp.linalg.norm(one) * jnp.linalg.norm(other)


def test_a_training_step_equals_its_parts_by_hand(network, trained):
    model, _, images, labels = network
    step, state, optimizer = trained
    new, values = step(state, images, labels, jnp.int32(3))

    @jax.jit
    def by_hand(params, state):
        def loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images / jnp.float32(128) - 1,
                True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), 3)},
            )
            chances = jax.nn.log_softmax(jax.image.resize(logits, (2, 8, 12, 3), "bilinear"))
            right = jnp.sum(chances * jax.nn.one_hot(labels, 3), -1)
            return -jnp.mean(right[:, 2:]), updates["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moved = optimizer.update(gradients, state.optimizer, params)
        return value, supervised.TrainState(optax.apply_updates(params, updates), stats, moved)

    value, expected = by_hand(state.params, state)
    np.testing.assert_allclose(values["loss"], value, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_training_step_depends_only_on_state_batch_and_step_number(network, trained):
    _, _, images, labels = network
    step, state, _ = trained
    first, again, other = (step(state, images, labels, jnp.int32(n))[0] for n in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [s.params["classifier"]["kernel"] for s in (first, other)]
    assert np.any(kernels[0] != kernels[1]), "each step draws its own dropout mask"


def test_no_traced_value_outlives_a_step(network, trained, no_leaks):
    _, _, images, labels = network
    step, state, _ = trained
    jax.eval_shape(step, state, images, labels, jnp.int32(0))


def test_the_loss_decreases_on_a_fixed_batch(network, trained):
    _, _, images, labels = network
    step, state, _ = trained
    labels, losses = np.where(labels == IGNORE, labels, np.uint8(1)), []
    for number in range(15):
        state, values = step(state, images, labels, jnp.int32(number))
        losses.append(float(values["loss"]))
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_features_read_converted_pixels(network):
    model, variables, images, _ = network
    floats = supervised.fresh_state(variables, optax.sgd(1.0)).variables()
    assert set(floats) == {"params", "batch_stats"}
    (found,) = jax.jit(supervised.features(model))(floats, images)
    pixels = jnp.asarray(images / np.float32(128) - 1)
    (expected,) = jax.jit(lambda v, x: model.apply(v, x, method="features"))(floats, pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _ranges(quant):
    leaves = jax.tree_util.tree_leaves_with_path(quant)
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in leaves if p[-1].key == "range"}


def test_calibration_widens_ranges_and_changes_nothing_else(network):
    model, variables, images, _ = network
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    quant = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.int32(6), variables["quant"])
    one = supervised.calibrated(model, floats, quant, [images[:1]])
    both = supervised.calibrated(model, floats, quant, [images[:1], images[1:], images[:1]])
    small, large = _ranges(one), _ranges(both)
    for name, (alpha, beta) in small.items():
        assert large[name][0] <= alpha <= 0 <= beta <= large[name][1]
        assert alpha < beta
    grown = [name for name in small if np.any(small[name] != large[name])]
    assert len(grown) > len(small) / 2
    np.testing.assert_array_equal(large["['encoder']['input']['range']"], [-1, 127 / 128])
    bits = [leaf for leaf in jax.tree.leaves(both) if leaf.ndim == 0]
    assert bits and all(leaf == 6 for leaf in bits)
    assert jax.tree.structure(both) == jax.tree.structure(quant)
