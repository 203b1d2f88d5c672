"""Compares LiteRT files with the NumPy model of its kernels, the integer reference and JAX."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import fold, graph, interpret
from qnas_jax.export.graph import ConvNode, Graph, QParams, Tensor
from qnas_jax.tasks import segmentation
from qnas_jax.train import supervised
from small_network import layers_alone

pytest.importorskip("ai_edge_litert", reason="pip install -e '.[litert]'")

from ai_edge_litert import schema_py_generated as schema

from qnas_jax.export.litert import flatbuffer, rounding
from qnas_jax.export.litert import run as litert_run
from qnas_jax.export.litert import write as litert_file

KERNELS = ("xnnpack", "builtin", "reference")
LINEAR, RELU, RELU6 = (-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0)
# Rounding error of differences of interpolated logits in float32.
NEXT_TO_TIE = 1e-5


def _tensors(network, images, kernels):
    ready = litert_run.session(litert_file.model(network), kernels=kernels, inner=True)
    return litert_run.tensors(ready, network, images)


def _images(network, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *network.x.shape)).astype(np.uint8)


def _assert_exact(network, images, kernels):
    """Checks that all codes equal those of `rounding.run` for these kernels."""
    found = _tensors(network, images, kernels)
    expected = rounding.run(network, images, kernels)
    for name, tensor in network.tensors().items():
        if tensor.grid:
            np.testing.assert_array_equal(found[name], expected[name], name)
            assert found[name].max() > found[name].min(), f"{name} is constant"
    return found


def _conv(bounds, bits, kernel, stride=1, dilation=1, depthwise=False, side=(13, 12), seed=0):
    """A convolution that exceeds both ends of its output's grid; the last channel is almost 0."""
    w_bits, a_bits = bits
    rng = np.random.default_rng(seed)
    channels = 12
    q_max = 2 ** (w_bits - 1) - 1
    shape = (kernel, kernel, 1 if depthwise else channels, channels)
    weights = rng.integers(-q_max, q_max + 1, shape).astype(np.int8)
    w_scale = rng.uniform(0.5, 1.5, channels).astype(np.float32) / q_max
    w_scale[-1] = fold.LEAST_SCALE
    read = QParams(float(np.float32(1 / 64)), 121, 8)
    spread = np.sqrt(weights[..., 0].size / 3)
    width = min(spread, bounds[1])
    zero_point = 0 if bounds[0] == 0 else 2**a_bits * 2 // 5
    grid = QParams(float(np.float32(width / (2**a_bits - 1))), zero_point, a_bits)
    bias = rng.normal(spread / 4, spread / 2, channels).astype(np.float32)
    bias[-1] = 0
    codes = np.rint(bias / (read.scale * w_scale)).astype(np.int32)
    out = tuple(-(-n // stride) for n in side)
    groups = channels if depthwise else 1
    how = (stride, dilation, groups, bounds, w_bits, w_scale, codes)
    node = ConvNode(Tensor("conv", (*out, channels), grid), "x", weights, bias, *how)
    return Graph(Tensor("x", (*side, channels), read), (node,))


LAYERS = {
    f"k{kernel}s{stride}d{dilation}{'dw' if depthwise else ''}-{side[0]}x{side[1]}": dict(
        kernel=kernel, stride=stride, dilation=dilation, depthwise=depthwise, side=side
    )
    for depthwise, kernel, stride, dilation, side in (
        *itertools.product((False,), (1, 3), (1, 2), (1,), ((13, 12),)),
        *itertools.product((True,), (3, 5, 7), (1, 2), (1,), ((13, 12), (15, 17))),
        *itertools.product((False, True), (3,), (1,), (2, 4), ((13, 12),)),
        (True, 5, 2, 2, (16, 13)),
    )
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("how", LAYERS.values(), ids=LAYERS)
def test_a_convolution_is_exact(how, kernels):
    for bounds, bits in ((LINEAR, (8, 8)), (RELU6, (6, 6)), (LINEAR, (5, 4))):
        network = _conv(bounds, bits, **how)
        found = _assert_exact(network, _images(network), kernels)["conv"]
        assert (found.min(), found.max()) == (0, 2 ** bits[1] - 1), "an end is not reached"


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bits", ((4, 8), (3, 4), (2, 2)), ids=str)
@pytest.mark.parametrize("depthwise", (False, True))
def test_few_bits_are_exact(depthwise, bits, kernels):
    for bounds in (LINEAR, RELU, RELU6):
        network = _conv(bounds, bits, 3, stride=2, depthwise=depthwise)
        _assert_exact(network, _images(network), kernels)


def test_xnnpack_rounds_like_the_integer_reference(int8):
    """Convolutions and means are equal; sums of two tensors may differ at ties."""
    found = _tensors(int8.network, int8.images, "xnnpack")
    tensors = int8.network.tensors()
    for node in int8.network.nodes:
        if node.out.grid:
            grids = [tensors[x].grid for x in node.inputs]
            expected = interpret.step(node, [found[x] for x in node.inputs], grids)
            steps = np.abs(found[node.out.name].astype(int) - expected)
            allowed = 1e-3 if isinstance(node, graph.Add) else 0
            assert steps.max() <= 1
            assert np.mean(steps > 0) <= allowed, node.out.name


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_whole_network_is_exact(int8, kernels):
    found = _assert_exact(int8.network, int8.images, kernels)
    expected = rounding.run(int8.network, int8.images, kernels)
    _assert_same_maps(found["classes"][..., 0], expected)
    maps = litert_run.run(
        litert_run.session(litert_file.model(int8.network), kernels=kernels), int8.images
    )
    np.testing.assert_array_equal(maps, found["classes"][..., 0])
    assert maps.dtype == np.uint8


def _assert_same_maps(maps, expected):
    """Checks that class maps are equal except where two classes are almost tied."""
    top = np.sort(expected["resized"], -1)
    decided = top[..., -1] - top[..., -2] > NEXT_TO_TIE
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(maps[decided], expected["classes"][..., 0][decided])


@pytest.mark.parametrize("kernels", ("xnnpack", "builtin"))
def test_fewer_bits_stay_on_their_grids(mixed, kernels):
    """Uses images beyond the calibrated ranges, so that codes reach the ends of the grids."""
    images = np.random.default_rng(1).choice([0, 255], mixed.images.shape).astype(np.uint8)
    found = _assert_exact(mixed.network, images, kernels)
    ends = 0
    for name, tensor in mixed.network.tensors().items():
        if tensor.grid and tensor.grid.bits < 8:
            assert found[name].max() <= tensor.grid.q_max
            ends += (found[name].max() == tensor.grid.q_max) and (found[name].min() == 0)
    assert ends > 3


def test_the_float_file_equals_jax(int8):
    found = _tensors(int8.floats, int8.images, "xnnpack")
    x = supervised.pixels(jnp.asarray(int8.images))
    logits = np.asarray(jax.jit(int8.model.apply)(int8.variables, x))
    np.testing.assert_allclose(found["classifier"], logits, rtol=1e-4, atol=1e-4)
    maps = np.asarray(
        supervised.predictor(int8.model, segmentation.predict)(int8.variables, int8.images)
    )
    assert np.mean(found["classes"][..., 0] == maps) > 0.999


def test_layers_alone_are_exact(int8):
    """Synthetic networks for timing: a block in integers, and in float compared with NumPy."""
    block, ops = space.Block(8, 16, 2, 2, 1), (space.Op(3, 3), space.Op(7, 2))
    whole = layers_alone(block, ops, (8, 8), (20, 23, 8))
    _assert_exact(whole, _images(whole), "xnnpack")
    floats = layers_alone(block, ops, None, (20, 23, 8))
    x = np.random.default_rng(0).normal(size=(2, 20, 23, 8)).astype(np.float32)
    found = litert_run.run(litert_run.session(litert_file.model(floats)), x)
    expected = interpret.run(floats, x)[floats.out.name]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _unpacked(model):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def test_the_file_follows_the_specification(int8):
    """Checks identifier, alignment, per-channel scales and their axes."""
    data = litert_file.model(int8.network)
    assert data[4:8] == b"TFL3"
    view, model = schema.Model.GetRootAs(data, 0), _unpacked(data)
    for number in range(1, view.BuffersLength()):
        held = view.Buffers(number).DataAsNumpy()
        start = held.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).ctypes.data
        assert start % flatbuffer.ALIGNMENT == 0
    (whole,) = model.subgraphs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    axes = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
    convs = iter(int8.network.convs)
    for operator in whole.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        assert code.builtinCode == code.deprecatedBuiltinCode
        if (kind := names[code.builtinCode]) in axes:
            conv = next(convs)
            x, weights, bias = (whole.tensors[number] for number in operator.inputs)
            assert weights.quantization.quantizedDimension == axes[kind]
            np.testing.assert_array_equal(weights.quantization.scale, conv.w_scale)
            np.testing.assert_array_equal(
                bias.quantization.scale, x.quantization.scale * conv.w_scale
            )
            assert not weights.quantization.zeroPoint.any()
    assert next(convs, None) is None
    assert [whole.tensors[i].name for i in whole.outputs] == [int8.network.out.name.encode()]


def test_the_signature_names_image_and_classes(int8):
    for network in (int8.network, int8.floats):
        ready = litert_run.session(litert_file.model(network))
        (signature,) = ready.get_signature_list().values()
        assert signature == {"inputs": ["image"], "outputs": ["classes"]}
        image = int8.images[:1]
        (read,) = ready.get_input_details()
        maps = ready.get_signature_runner()(image=image)["classes"]
        np.testing.assert_array_equal(maps, litert_run.run(ready, image))
        assert (read["dtype"], maps.dtype) == (np.uint8, np.uint8)


def test_symmetric_padding_needs_no_operator():
    """SAME if it is symmetric (at stride 2, if both sides are odd), else a PAD."""
    for side, stride, pads in (((12, 12), 1, 0), ((13, 15), 2, 0), ((13, 12), 2, 1)):
        network = _conv(RELU6, (8, 8), 3, stride=stride, side=side)
        codes = [code.builtinCode for code in _unpacked(litert_file.model(network)).operatorCodes]
        assert codes.count(schema.BuiltinOperator.PAD) == pads


def test_a_file_has_little_overhead():
    """At most 2 % over weights and 12 bytes per channel (scale, bias and the bias's scale)."""
    block, ops = space.Block(96, 160, 2, 1, 5), (space.Op(3, 6),) * 5
    for bits in ((8, 8), (4, 8)):
        network = layers_alone(block, ops, bits, (8, 16, 96))
        held = sum(conv.weights.size + 12 * conv.weights.shape[-1] for conv in network.convs)
        assert held <= len(litert_file.model(network)) <= 1.02 * held
    floats = layers_alone(block, ops, None, (8, 16, 96))
    held = sum(4 * (conv.weights.size + conv.bias.size) for conv in floats.convs)
    assert held <= len(litert_file.model(floats)) <= 1.01 * held


def test_only_equal_options_and_grids_are_shared():
    block, ops = space.Block(16, 24, 2, 1, 3), (space.Op(3, 3), space.Op(5, 3), space.Op(3, 6))
    data = litert_file.model(layers_alone(block, ops, (8, 8), (13, 12, 16)))
    packed, unpacked = schema.Model.GetRootAs(data, 0).Subgraphs(0), _unpacked(data).subgraphs[0]
    operators = [packed.Operators(i).BuiltinOptions() for i in range(packed.OperatorsLength())]
    grids = [packed.Tensors(i).Quantization() for i in range(packed.TensorsLength())]
    options = [operator.builtinOptions for operator in unpacked.operators]
    for tables, held in (
        ([table.Pos for table in operators if table], [o for o in options if o]),
        ([g._tab.Pos for g in grids if g], [t.quantization for t in unpacked.tensors]),
    ):
        contents = [repr((type(table), vars(table))) for table in held if table]
        pairs = set(zip(tables, contents, strict=True))
        assert len(pairs) == len(set(tables)) == len(set(contents)) < len(contents)


def test_what_cannot_be_written_or_run_is_refused(tmp_path):
    network = _conv(RELU6, (8, 8), 3)
    odd = dataclasses.replace(network.nodes[0], bounds=(0.0, 4.0))
    with pytest.raises(InputError, match=r"conv: LiteRT has no activation .*4\.0"):
        litert_file.model(Graph(network.x, (odd,)))
    with pytest.raises(InputError, match=r"missing\.tflite: no such file"):
        litert_run.session(tmp_path / "missing.tflite")
    (tmp_path / "broken.tflite").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.tflite: is no model"):
        litert_run.session(tmp_path / "broken.tflite")
