import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import ASPP, DeepLabV3, resize_logits

STRIDES, DILATIONS = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)


def _published(strides=STRIDES, head_channels=512):
    first, *blocks = space.mobilenet_v2_blocks(1.0, strides, DILATIONS)
    paths = mobilenet.teacher_paths(tuple(blocks))
    encoder = mobilenet.MobileNetV2(32, first, tuple(blocks), paths)
    return DeepLabV3(encoder, head_channels, (12, 24, 36), 19, 0.1)


def _shapes(model):
    image = jax.ShapeDtypeStruct((1, 64, 128, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


def _conv_weights(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")


@pytest.mark.parametrize(("head_channels", "millions"), [(512, 16.56), (256, 5.33)])
def test_the_published_network_has_the_published_weights(head_channels, millions):
    _, variables = _shapes(_published(head_channels=head_channels))
    params = variables["params"]
    assert _conv_weights(params["encoder"]) == 1_778_496 + 864 + 800
    head = _conv_weights(params["aspp"]) + _conv_weights(params["classifier"])
    # Five branches on 320 channels, the convolution that joins them, the classifier.
    c = head_channels
    assert head == (1 + 1 + 3 * 9) * 320 * c + 9 * 5 * c * c + c * 19
    assert round(head / 1e6, 2) == millions
    assert params["classifier"]["bias"].shape == (19,)


@pytest.mark.parametrize(
    ("strides", "output_stride"), [(STRIDES, 8), ((1, 2, 2, 2, 1, 1, 1), 16)], ids=["os8", "os16"]
)
def test_logits_have_the_encoders_output_stride(strides, output_stride):
    logits, _ = _shapes(_published(strides))
    assert logits.shape == (1, 64 // output_stride, 128 // output_stride, 19)


@pytest.fixture(scope="module")
def head():
    """Features, a head with a rate beyond them, its variables, and what its parts give."""
    model = ASPP(4, (2, 9))
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1, (2, 3, 5, 6)), jnp.float32)
    variables = init.initialize(model, jax.random.key(0), x.shape)
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    _, state = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))(floats, x)
    parts = state["intermediates"]
    return x, variables, {n: p["__call__"][0] for n, p in parts.items() if n != "__call__"}


def test_the_branches_of_the_head_are_joined_in_order(head):
    x, _, seen = head
    pooled = np.broadcast_to(seen["pool"], (2, 3, 5, 4))
    branches = [pooled, seen["point"], seen["rate2"], seen["rate9"]]
    np.testing.assert_array_equal(seen["concat"], np.concatenate(branches, -1))
    np.testing.assert_allclose(seen["mean"], np.mean(x, (1, 2), keepdims=True), atol=1e-6)
    assert seen["join"].shape == (2, 3, 5, 4)


def test_a_rate_beyond_the_image_leaves_the_middle_of_the_kernel(head):
    x, variables, seen = head
    middle = np.asarray(variables["params"]["rate9"]["kernel"], np.float64)[1, 1]
    expected = np.maximum(np.asarray(x, np.float64) @ middle / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(seen["rate9"], expected, rtol=1e-5, atol=1e-5)


def test_the_branches_share_one_grid(head):
    _, variables, _ = head
    quant = variables["quant"]
    for branch in ("pool", "point", "rate2", "rate9"):
        assert set(quant[branch]) == {"w_bits"}
    for grid in ("mean", "concat"):
        assert set(quant[grid]) == {"a_bits", "range"}
    assert set(quant["join"]) == {"w_bits", "out"}


@pytest.fixture(scope="module")
def small():
    """A network of three layers and a head, float variables and images."""
    encoder = mobilenet.MobileNetV2(4, space.Block(4, 4, 1, 1, 1), (), ())
    model = DeepLabV3(encoder, 4, (1,), 3, dropout=0.5)
    images = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 6, 6, 3)), jnp.float32)
    variables = init.initialize(model, jax.random.key(0), images.shape)
    return model, {name: variables[name] for name in ("params", "batch_stats")}, images


def test_dropout_is_for_training_alone(small):
    model, variables, images = small

    @jax.jit
    def training(key):
        return model.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": key})[
            0
        ]

    first, second, again = (training(jax.random.key(seed)) for seed in (1, 2, 1))
    assert jnp.any(first != second)
    np.testing.assert_array_equal(first, again)
    jax.eval_shape(model.apply, variables, images)  # would ask for a key


def test_features_are_those_that_feed_the_head(small):
    model, variables, images = small

    @jax.jit
    def both(variables):
        _, state = model.apply(variables, images, capture_intermediates=True)
        seen = state["intermediates"]["encoder"]["__call__"][0]
        return model.apply(variables, images, method="features"), seen

    (features,), (seen,) = both(variables)
    assert features.shape == (1, 3, 3, 4)
    np.testing.assert_array_equal(features, seen)


def _bilinear(image, height, width):
    """Half-pixel centres, edges repeated, in float64."""
    result = np.zeros((height, width, image.shape[-1]))
    for row, column in np.ndindex(height, width):
        y = np.clip((row + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
        x = np.clip((column + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
        upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
        lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
        result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(12, 20), (7, 11), (3, 5), (2, 3)], ids=str)
def test_logits_are_resized_bilinearly(size):
    logits = np.random.default_rng(0).normal(0, 1, (2, 3, 5, 4))
    found = resize_logits(jnp.asarray(logits, jnp.float32), *size)
    expected = np.stack([_bilinear(image, *size) for image in logits])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.bench
@pytest.mark.parametrize("size", [(24, 40), (7, 11), (2, 3)], ids=str)
def test_resized_logits_against_torch(size):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(0, 1, (2, 3, 5, 4)).astype(np.float32)
    found = resize_logits(jnp.asarray(logits), *size)
    images = torch.tensor(logits.transpose(0, 3, 1, 2))
    theirs = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
    difference = np.abs(found - theirs.numpy().transpose(0, 2, 3, 1)).max()
    print(f"{size}: largest difference {difference:g}")
    assert difference < 1e-6
