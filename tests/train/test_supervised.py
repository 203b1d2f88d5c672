import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qnas_jax import space
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3, resize_logits
from qnas_jax.train import supervised

IGNORE = 255
_loss = jax.jit(jax.value_and_grad(supervised.cross_entropy))


def test_pixels_are_exact():
    every_byte = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = supervised.pixels(jnp.asarray(every_byte))
    np.testing.assert_array_equal(found, every_byte.astype(np.float64) / 128 - 1)
    assert found.dtype == jnp.float32


def _cross_entropy(logits, labels):
    """Mean over the pixels that are not ignored, in float64."""
    losses = []
    for pixel in np.ndindex(labels.shape):
        if labels[pixel] != IGNORE:
            x = logits[pixel].astype(np.float64)
            losses.append(np.log(np.exp(x).sum()) - x[labels[pixel]])
    return np.mean(losses)


def test_cross_entropy_is_the_mean_over_pixels_that_are_not_ignored():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 3, 4)).astype(np.uint8)
    labels[0, :2] = IGNORE
    labels[1, 2, 3] = IGNORE
    found, gradient = _loss(logits, labels)
    np.testing.assert_allclose(found, _cross_entropy(logits, labels), rtol=1e-6)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(256)[labels][..., :5]
    expected = np.where((labels != IGNORE)[..., None], expected / np.sum(labels != IGNORE), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]]))
    labels = jnp.array([[[1, 0, IGNORE]]], jnp.uint8)
    expected = (np.log(4 / 3) + np.log(2)) / 2
    np.testing.assert_allclose(_loss(logits, labels)[0], expected, rtol=1e-6)


def test_images_without_labels_give_no_gradient():
    labels = jnp.full((1, 2, 2), IGNORE, jnp.uint8)
    loss, gradient = _loss(jnp.ones((1, 2, 2, 3)), labels)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def _sgd(weights, gradients, lr, steps, power, momentum, weight_decay):
    """Weights after each step, in float64; the velocity is torch's, without dampening."""
    velocity, curve = np.zeros_like(weights), []
    for step, gradient in enumerate(gradients):
        rate = lr * (1 - step / steps) ** power
        velocity = momentum * velocity + gradient + weight_decay * weights
        weights = weights - rate * velocity
        curve.append(weights)
    return np.array(curve)


def _optimized(params, gradients, optimizer):
    """Parameters after each step."""
    state, curve = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        curve.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *curve)


SETTINGS = [
    {"lr": 0.1, "steps": 7, "power": 0.9, "momentum": 0.9, "weight_decay": 0.05},
    {"lr": 0.3, "steps": 5, "power": 2.0, "momentum": 0.0, "weight_decay": 0.0},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=["decayed", "plain"])
def test_sgd_equals_momentum_decay_and_schedule_by_hand(setting):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, (setting["steps"], 3, 4))
    expected = _sgd(weights, gradients, **setting)
    found = _optimized(
        {"kernel": jnp.float32(weights)},
        [{"kernel": jnp.float32(g)} for g in gradients],
        supervised.sgd(**setting),
    )["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sgd_decays_only_kernels():
    params = {"kernel": jnp.ones(2), "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    gradients = [jax.tree.map(jnp.zeros_like, params)] * 3
    found = _optimized(params, gradients, supervised.sgd(0.1, 10, 0.9, 0.9, 0.05))
    assert np.all(found["kernel"] < 1)
    np.testing.assert_array_equal(found["norm"]["scale"], 1)
    np.testing.assert_array_equal(found["norm"]["bias"], 1)


class Images:
    """Five images that encode their index."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full((2, 3, 3), 10 + index, np.uint8), np.full((2, 3), index, np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_predictions_pad_the_last_batch_and_drop_the_padding(batch):
    shapes = []

    def source(images):
        shapes.append(images.shape)
        return jnp.asarray(images[..., 0] + 1)

    found = list(supervised.predictions(source, Images(), batch))
    assert set(shapes) == {(batch, 2, 3, 3)}
    assert [len(labels) for labels, _ in found] == [
        min(batch, 5 - start) for start in range(0, 5, batch)
    ]
    labels, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert labels.dtype == maps.dtype == np.uint8
    np.testing.assert_array_equal(labels[:, 0, 0], range(5))
    np.testing.assert_array_equal(maps, labels + 11)


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


def test_class_maps_are_the_argmax_of_the_resized_logits(network):
    model, variables, images, _ = network
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    found = supervised.predictor(model)(floats, images)
    assert found.shape == (2, 8, 12) and found.dtype == jnp.uint8
    pixels = jnp.asarray(images / np.float32(128) - 1)
    logits = np.asarray(resize_logits(jax.jit(model.apply)(floats, pixels), 8, 12))
    sorted_ = np.sort(logits, -1)
    clear = sorted_[..., -1] - sorted_[..., -2] > 1e-5
    np.testing.assert_array_equal(found[clear], logits.argmax(-1)[clear])
    assert clear.mean() > 0.9 and len(np.unique(found)) > 1


def test_a_prediction_does_not_depend_on_the_padding(network):
    model, variables, images, _ = network
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    predict = supervised.predictor(model)
    both, padded = predict(floats, images), predict(floats, images * np.uint8([[[[1]]], [[[0]]]]))
    np.testing.assert_array_equal(both[0], padded[0])


@pytest.fixture(scope="module")
def trained(network):
    """A training step, the initial state, and the optimizer."""
    model, variables, *_ = network
    optimizer = supervised.sgd(0.1, 20, 0.9, 0.9, 1e-3)
    step = supervised.train_step(model, optimizer, jax.random.key(1))
    return step, supervised.fresh_state(variables, optimizer), optimizer


@pytest.mark.parametrize(("clip", "share"), [(10.0, 1.0), (2.5, 0.5), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, share):
    """A gradient of norm 5 over two leaves; one step without momentum and decay."""
    params = {"a": {"kernel": jnp.zeros(1)}, "b": {"bias": jnp.zeros(1)}}
    gradients = {"a": {"kernel": jnp.array([3.0])}, "b": {"bias": jnp.array([-4.0])}}
    optimizer = supervised.sgd(0.1, 10, 1.0, 0.0, 0.0, clip)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    found = jnp.concatenate(jax.tree.leaves(updates))
    np.testing.assert_allclose(found, -0.1 * share * np.array([3.0, -4.0]), rtol=1e-6)


def test_a_step_in_bfloat16_is_close_to_float32(network, trained):
    model, _, images, labels = network
    step, state, optimizer = trained
    near = supervised.train_step(model, optimizer, jax.random.key(1), "bfloat16")
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
