import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import mobilenet, units
from qnas_jax.nn.mbconv import BlockPath

STRIDES, DILATIONS = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)
TABLE_I_DEPTHS = (3, 3, 4, 4, 3, 1)  # of the subnets' blocks


def _blocks(depths=None, strides=STRIDES):
    first, *blocks = space.mobilenet_v2_blocks(1.0, strides, DILATIONS)
    depths = depths or [block.depth for block in blocks]
    deep = [
        space.Block(b.in_channels, b.channels, b.stride, b.dilation, depth)
        for b, depth in zip(blocks, depths, strict=True)
    ]
    return first, tuple(deep)


def _encoder(depths=None, op=mobilenet.TEACHER_OP, strides=STRIDES):
    first, blocks = _blocks(depths, strides)
    return mobilenet.MobileNetV2(32, first, blocks, tuple((op,) * b.depth for b in blocks))


def _shapes(model, height=64, width=128):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def _conv_weights(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")


@pytest.fixture(scope="module")
def teacher():
    return _shapes(_encoder())


def test_the_teachers_blocks_have_the_weights_of_table_one(teacher):
    found = [_conv_weights(teacher["params"][f"block{i}"]) for i in range(1, 7)]
    assert found == [12_912, 37_392, 177_984, 296_448, 784_320, 469_440]
    assert _conv_weights(teacher["params"]["stem"]) == 3 * 3 * 3 * 32
    assert _conv_weights(teacher["params"]["block0"]) == 3 * 3 * 32 + 32 * 16


def test_the_encoder_has_as_many_parameters_as_torchvisions(teacher):
    # mobilenet_v2 has 3,504,872, of which the last convolution with its norm has
    # 320 * 1280 + 2 * 1280 and the classifier 1281 * 1000.
    parameters = sum(leaf.size for leaf in jax.tree.leaves(teacher["params"]))
    assert parameters == 3_504_872 - (320 * 1280 + 2 * 1280) - 1281 * 1000


@pytest.mark.parametrize(("op", "weights"), [(space.Op(3, 3), 0.953), (space.Op(7, 6), 2.217)])
def test_the_encoder_of_the_smallest_and_of_the_largest_subnet(op, weights):
    params = _shapes(_encoder(TABLE_I_DEPTHS, op))["params"]
    assert round(_conv_weights(params) / 1e6, 3) == weights


@pytest.mark.parametrize(
    ("strides", "output_stride"), [(STRIDES, 8), ((1, 2, 2, 2, 1, 1, 1), 16)], ids=["os8", "os16"]
)
def test_features_at_all_boundaries_down_to_the_output_stride(strides, output_stride):
    model = _encoder(strides=strides)
    image = jax.ShapeDtypeStruct((2, 64, 128, 3), jnp.float32)
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    channels = [16, 24, 32, 64, 96, 160, 320]
    scales = [2, 4, 8, output_stride, output_stride, output_stride, output_stride]
    expected = [(2, 64 // s, 128 // s, c) for s, c in zip(scales, channels, strict=True)]
    assert [f.shape for f in features] == expected


def test_odd_images_are_rounded_up_at_every_stride():
    image = jax.ShapeDtypeStruct((1, 33, 65, 3), jnp.float32)
    features, _ = jax.eval_shape(_encoder().init_with_output, jax.random.key(0), image)
    assert [f.shape[1:3] for f in features[:3]] == [(17, 33), (9, 17), (5, 9)]


def test_the_teachers_paths_are_mobilenets_own_ops():
    _, blocks = _blocks()
    paths = mobilenet.teacher_paths(blocks)
    assert [len(path) for path in paths] == [2, 3, 4, 3, 3, 1]
    assert {op for path in paths for op in path} == {space.Op(3, 6)}


def test_the_images_grid_holds_every_byte():
    bytes_ = jnp.arange(256.0).reshape(1, 16, 16, 1)
    grid = units.Input()
    images = bytes_ / 128 - 1
    found = grid.apply(grid.init(jax.random.key(0), images), images)
    np.testing.assert_array_equal(found, images)


SMALL = space.Block(in_channels=3, channels=4, stride=2, dilation=2, depth=2)


@pytest.fixture(scope="module")
def small_path():
    """A strided layer and one whose input is added, run for all that its parts give."""
    model = BlockPath(SMALL, (space.Op(3, 2), space.Op(5, 1)))
    run = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True)[1]["intermediates"])
    fresh = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5, 6, 3)))
    rng = np.random.default_rng(0)
    drawn = {
        name: jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0.2, 1, leaf.shape)), fresh[name])
        for name in ("params", "batch_stats")
    }
    return run, drawn, jnp.asarray(rng.normal(0, 1, (1, 5, 6, 3)), jnp.float32)


def test_a_layer_adds_its_input_where_stride_and_channels_allow_it(small_path):
    run, variables, x = small_path
    params, seen = variables["params"], run(variables, x)

    def output(layer, part):
        return seen[f"layer{layer}"][part]["__call__"][0]

    first = output(0, "project")
    np.testing.assert_array_equal(seen["layer0"]["__call__"][0], first)
    summed = first + output(1, "project")
    np.testing.assert_allclose(seen["layer1"]["__call__"][0], summed, rtol=1e-6)
    assert seen["__call__"][0].shape == (1, 3, 3, 4)
    # Expansion 1 has no expanding convolution.
    assert set(params["layer0"]) == {"expand", "depthwise", "project"}
    assert set(params["layer1"]) == {"depthwise", "project"}


def test_hidden_features_are_clipped_to_6_and_projections_are_not(small_path):
    run, variables, x = small_path
    layer = run(variables, 30 * x)["layer0"]
    hidden, projected = (layer[part]["__call__"][0] for part in ("depthwise", "project"))
    assert hidden.min() == 0 and hidden.max() == 6
    assert projected.max() > 6
