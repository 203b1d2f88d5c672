"""Compares the integer simulation in JAX with the NumPy reference, code by code."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.export import fold, graph, interpret, simulate
from qnas_jax.export.graph import ConvNode, Graph, QParams, Tensor
from small_network import layers_alone

LINEAR = (-np.inf, np.inf)
NEXT_TO_TIE = 1e-5  # rounding error of differences of interpolated logits in float32


def _images(network, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, network.x.grid.q_max + 1, (count, *network.x.shape)).astype(np.uint8)


def _assert_exact(network, images):
    """Checks that all codes are equal."""
    found, expected = simulate.tensors(network)(images), interpret.run(network, images)
    assert set(found) == set(expected)
    for name, tensor in network.tensors().items():
        if tensor.grid:
            assert found[name].dtype == np.uint8
            np.testing.assert_array_equal(found[name], expected[name], name)
    return found, expected


@pytest.mark.parametrize("name", ["int8", "mixed"])
def test_a_whole_network_is_exact(name, request):
    """Norms of both signs and zero, strides, dilation, sums, means; codes at both ends of grids."""
    network = request.getfixturevalue(name).network
    hard = np.random.default_rng(1).choice([0, 255], (2, *network.x.shape)).astype(np.uint8)
    images = np.concatenate([_images(network), hard])
    found, expected = _assert_exact(network, images)
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    maps = simulate.simulator(network)(images)
    np.testing.assert_array_equal(maps, found["classes"][..., 0])
    assert maps.dtype == np.uint8
    top = np.sort(expected["resized"], -1)
    decided = top[..., -1] - top[..., -2] > NEXT_TO_TIE
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(maps[decided], expected["classes"][..., 0][decided])


def _conv(kernel, stride, dilation, depthwise, bits, inner, channels=12):
    """A convolution that exceeds both ends of its output's grid, or of an `inner` interval.

    The last channel has zero weights and a bias that float32 cannot represent.
    """
    w_bits, a_bits = bits
    rng = np.random.default_rng(kernel)
    q_max, outputs = 2 ** (w_bits - 1) - 1, 12
    shape = (kernel, kernel, 1 if depthwise else channels, outputs)
    weights = rng.integers(-q_max, q_max + 1, shape).astype(np.int8)
    read = QParams(float(np.float32(1 / 64)), 2**a_bits // 3, a_bits)
    spread = np.sqrt(weights[..., 0].size / 9) * q_max * read.q_max
    w_scale = rng.uniform(0.5, 1.5, outputs).astype(np.float32) / np.float32(spread)
    grid = QParams(float(np.float32(1 / 64 / read.q_max)), read.q_max // 3, a_bits)
    bounds = (0.0, grid.scale * grid.q_max / 2) if inner else LINEAR
    codes = rng.normal(0, spread, outputs).round().astype(np.int32)
    weights[..., -1], w_scale[-1], codes[-1] = 0, 2.0**-31, 2**30 - 77
    side = (13, 12)
    out = tuple(-(-n // stride) for n in side)
    how = (stride, dilation, channels if depthwise else 1, bounds, w_bits, w_scale, codes)
    node = ConvNode(Tensor("conv", (*out, outputs), grid), "x", weights, codes * w_scale, *how)
    return Graph(Tensor("x", (*side, channels), read), (node,))


@pytest.mark.parametrize(
    ("bits", "inner"), [((8, 8), False), ((6, 6), True), ((4, 4), False), ((2, 8), True)], ids=str
)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_a_convolution_is_exact(depthwise, bits, inner):
    hows = [*itertools.product((3,), (1, 2), (1, 2)), (7, 2, 1)]
    hows = hows if depthwise else [*hows, (1, 1, 1), (1, 2, 1)]
    for kernel, stride, dilation in hows:
        network = _conv(kernel, stride, dilation, depthwise, bits, inner)
        codes = np.asarray(_assert_exact(network, _images(network))[0]["conv"])
        (conv,) = network.nodes
        low, high = conv.out.grid.code_bounds(conv.bounds)
        assert (codes.min(), codes.max()) == (low, high)
        assert len(np.unique(codes)) > (high - low) / 2
        assert len(np.unique(codes[..., -1])) == 1


def test_sums_beyond_float32_are_split_and_exact():
    """Weights and inputs of one sign give sums up to 37 million, split into 2 and 3 parts."""
    for kernel, channels, parts in ((1, 700, 2), (3, 128, 3), (3, 16, 1)):
        network = _conv(kernel, 1, 1, False, (8, 8), False, channels)
        (conv,) = network.nodes
        weights = np.abs(conv.weights) | 1
        weights[..., :6] = 127
        bias = np.full(12, -(weights.astype(int).sum((0, 1, 2)).max() * 200), np.int32)
        # One output code is one step of the accumulator, so each error is visible.
        scale = np.full(12, conv.out.grid.scale, np.float32)
        conv = dataclasses.replace(conv, weights=weights, bias_codes=bias, w_scale=scale)
        x = network.x._replace(grid=QParams(1.0, 0, 8))
        network = Graph(x, (conv,))
        assert simulate._parts(conv, x.grid) == parts
        images = _images(network) | 128
        sums = interpret.integer.conv(images, 0, weights, 0 * bias, 1, 1, 1)
        assert (sums.max() > simulate.EXACT) == (parts > 1)
        middle = int(np.median(sums[..., :6]))
        near = dataclasses.replace(conv, bias_codes=np.full(12, 100 - middle, np.int32))
        codes, _ = _assert_exact(Graph(x, (near,)), images)
        assert len(np.unique(codes["conv"])) > 1
        _assert_exact(network, images)


def test_float32_without_a_split_is_not_exact():
    """The reason for the split: a single float32 sum loses steps."""
    rng = np.random.default_rng(0)
    x = rng.integers(129, 256, (1, 8, 8, 900)).astype(np.float32)
    w = np.full((900, 4), 127, np.float32)
    w[0] = 126
    whole = np.einsum("nhwi,io->nhwo", x.astype(np.int64), w.astype(np.int64))
    assert np.any(np.asarray(jnp.einsum("nhwi,io->nhwo", x, w)).astype(np.int64) != whole)


def test_an_int32_overflow_is_refused():
    network = _conv(3, 1, 1, False, (8, 8), False)
    (conv,) = network.nodes
    bias = np.full(12, 2**31 - 1, np.int32)
    with pytest.raises(OverflowError, match=r"conv: a sum of .* does not fit into 32 bits"):
        simulate.tensors(Graph(network.x, (dataclasses.replace(conv, bias_codes=bias),)))


@pytest.mark.parametrize("bits", [(8, 8), (6, 4), (4, 6)], ids=str)
def test_a_block_is_exact_on_single_images_and_batches(bits):
    block, ops = space.Block(8, 16, 2, 2, 1), (space.Op(5, 3), space.Op(7, 2))
    network = layers_alone(block, ops, bits, (20, 23, 8))
    images = _images(network, 3)
    together, _ = _assert_exact(network, images)
    alone = simulate.tensors(network)(images[1:2])[network.out.name]
    np.testing.assert_array_equal(alone, together[network.out.name][1:2])


def test_networks_with_different_weights_share_a_program(int8):
    """Weights and grids are arguments."""
    other = fold.fold(
        int8.model,
        jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.1), int8.variables),
        int8.quant,
        int8.images.shape[1:],
        resize=True,
    )
    texts = [
        run.func.lower(*run.args, int8.images).as_text()
        for run in map(simulate.tensors, (int8.network, other))
    ]
    assert texts[0] == texts[1]


def test_sums_and_means_of_all_codes_are_exact():
    """A sum of all pairs of codes on grids with different bits, and means of its output."""
    pairs = np.stack(np.meshgrid(*[np.arange(256)] * 2, indexing="ij"), -1).astype(np.uint8)
    a, b, out = QParams(0.013, 3, 8), QParams(0.017, 200, 8), QParams(0.09, 20, 6)
    copies = [_identity(f"c{i}", grid, i) for i, grid in enumerate((a, b))]
    total = graph.Add(Tensor("sum", (256, 256, 1), out), ("c0", "c1"))
    mean = graph.Mean(Tensor("mean", (1, 1, 1), QParams(0.5, 1, 4)), "sum")
    network = Graph(Tensor("x", (256, 256, 2), QParams(1.0, 0, 8)), (*copies, total, mean))
    found, _ = _assert_exact(network, np.stack([pairs, pairs // 3, pairs[::-1]]))
    assert len(np.unique(found["sum"])) > 60
    np.testing.assert_array_equal(np.unique(found["c1"]), np.arange(256))


def _identity(name, grid, channel):
    """Maps the bytes of a channel to the codes of a grid."""
    weights = np.zeros((1, 1, 2, 1), np.int8)
    weights[0, 0, channel] = 1
    bias = np.array([-grid.zero_point], np.int32)
    scale = np.array([grid.scale], np.float32)
    how = (1, 1, 1, LINEAR, 8, scale, bias)
    return ConvNode(Tensor(name, (256, 256, 1), grid), "x", weights, bias * scale, *how)
